"""The process that works on one unit of curation: decoding and models. Started by `units.py`, which says why."""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO

from xgenvideo.curate.fetched import discard
from xgenvideo.curate.inputs import Item
from xgenvideo.curate.stages import TRANSIENT, Workplace
from xgenvideo.curate.steps import OF_CLIPS, judge
from xgenvideo.curate.units import Job
from xgenvideo.curate.workers import unwritable
from xgenvideo.data.confined import UNWRITABLE
from xgenvideo.errors import XGenVideoError

PR_SET_PDEATHSIG = 1
Tell = Callable[[dict[str, Any]], None]


def work_unit(job: Job, tell: Tell) -> dict[str, Any]:
    """Store all scores of the unit. Returns processor seconds by step, and for each input the outcome: its content's
    hash, its reason, and its failure if any.
    """
    items = [Item(number, entry) for number, entry in enumerate(job.entries)]
    with Workplace(job.folder, job.settings, lambda *progress: tell({"progress": progress}), job.part) as work:
        judge(items, work, OF_CLIPS, lambda step: tell({"step": step, "seconds": work.seconds}))
        if not job.settings.keep_downloads:
            discard(items, work)
    return {"seconds": work.seconds, "outcomes": [_outcome(item) for item in items]}


def _outcome(item: Item) -> dict[str, Any]:
    outcome: dict[str, Any] = {"content": item.content, "reason": item.reason}
    if item.reason not in TRANSIENT:
        return outcome
    # Not stored, because another run may succeed; this one does not try again.
    drop = next(decision for decision in item.decisions if not decision.keep)
    return outcome | {"step": drop.step, "detail": drop.detail}


def settle(memory_mb: int) -> BinaryIO:
    """Bound this process's memory. Returns where its answers go: libraries print to stdout."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = memory_mb * 2**20 if hard == resource.RLIM_INFINITY else min(memory_mb * 2**20, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends it even inside native code
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def die_with(parent: int) -> None:
    """End when the parent does: another run may then write to the same stores."""
    with suppress(OSError, AttributeError):  # Linux only; elsewhere the next answer breaks the pipe
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def error_of(error: XGenVideoError) -> dict[str, Any]:
    """As it is told to the parent, where `units.as_error` makes it again."""
    return {"error": type(error).__name__, "message": str(error), "values": vars(error)}


def main() -> None:
    """Work on the unit that stdin holds."""
    answers = settle(int(sys.argv[1]))
    job = Job.from_json(sys.stdin.buffer.read())
    die_with(job.parent)

    def tell(answer: dict[str, Any]) -> None:
        signal.setitimer(signal.ITIMER_REAL, job.settings.unit_seconds)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()

    try:
        tell(work_unit(job, tell))
    except XGenVideoError as error:
        tell(error_of(error))
    except OSError as error:
        full = error.errno in UNWRITABLE
        tell(error_of(unwritable(error)) if full else {"crash": f"{type(error).__name__}: {error}"[:300]})
    except Exception as error:  # a bug that one input meets, or the memory limit: found by halving, like a crash
        tell({"crash": f"{type(error).__name__}: {error}"[:300]})


if __name__ == "__main__":
    main()
