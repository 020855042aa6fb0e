"""The process that reads strangers' videos for a model that is being used: jobs (JSON lines) in, windows of frames out.

Started by `decoders.py` with its memory limit in MB as argument. A window is a JSON line and its frames' raw bytes.
"""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xgenvideo.data.confined import confine
from xgenvideo.data.video import probe, sample_windows
from xgenvideo.errors import MediaError
from xgenvideo.records import SampledVideo


def windows(job: dict[str, Any]) -> Iterator[SampledVideo]:
    """The windows of one job, once size and length are known to be within its bounds. Raises MediaError."""
    path = Path(job["path"])
    facts = probe(path)
    if facts.width * facts.height > job["max_pixels"]:
        raise MediaError("too_large", path, f"{facts.width} x {facts.height}, at most {job['max_pixels']} pixels")
    if facts.seconds > job["max_seconds"]:
        raise MediaError("too_long", path, f"{facts.seconds:.0f} s, at most {job['max_seconds']:.0f} s")
    yield from sample_windows(path, job["fps"], job["frames"], job["short_side"])


def main() -> None:
    """Answer jobs until stdin ends."""
    answers = confine(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        job = json.loads(line)
        # Processor time: a child may wait long for a model that is slower than it.
        signal.setitimer(signal.ITIMER_PROF, job["cpu_seconds"])
        last: dict[str, Any] = {}
        try:
            for taken in windows(job):
                about = {"shape": taken.frames.shape, "pts": taken.pts.tolist(), "indices": taken.indices.tolist()}
                answers.write(json.dumps(about | {"seconds": taken.seconds}).encode() + b"\n")
                answers.write(taken.frames.data.cast("B"))
                answers.flush()
        except MediaError as error:
            last = {"reason": error.reason, "detail": error.detail[:300]}
        except MemoryError:
            last = {"reason": "too_large", "detail": "more memory than a decoder may use"}
        except Exception as error:  # a bug met by one file is reported for it, and the child goes on
            last = {"reason": "decode_failed", "detail": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(last).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
