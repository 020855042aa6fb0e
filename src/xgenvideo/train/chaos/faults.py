"""Every fault but the kills and the damage: each runs a job, hurts it, and says whether its promise held."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xgenvideo.checkpoint.run import CHECKPOINTS
from xgenvideo.config import RunConfig, override
from xgenvideo.parallel.watchdog import EXIT_HUNG
from xgenvideo.train.chaos.ends import end_of, tensor_differences
from xgenvideo.train.chaos.injected import Injected
from xgenvideo.train.chaos.job import Job, start_and_end
from xgenvideo.train.chaos.kills import committed, until
from xgenvideo.train.chaos.verdict import Verdict
from xgenvideo.train.log import read_metrics
from xgenvideo.train.stop import stop_of

STEP_TIMEOUT_SECONDS = 5.0
SLOW_SECONDS, CLOCK_DAYS, NAN_STEP = 0.3, 400.0, 7


@dataclass(frozen=True)
class Trial:
    """Where a fault is tried: the run of one rank, that of two, the undisturbed run of each, a folder for the rest."""

    one: RunConfig
    two: RunConfig
    whole_one: Path
    whole_two: Path
    folder: Path

    def out(self, name: str) -> Path:
        """The run folder of a fault."""
        return self.folder / name

    def log(self, name: str) -> Path:
        """What its ranks said."""
        return self.folder / f"{name}.txt"


def saved_once(job: Job) -> None:
    """Wait for a checkpoint of this job."""
    known = committed(job.out / CHECKPOINTS)
    until(job, lambda: committed(job.out / CHECKPOINTS) - known)


def hang(trial: Trial) -> list[Verdict]:
    """SIGSTOP: the rank is named within the timeout, and the run goes on."""
    out, log = trial.out("hang"), trial.log("hang")
    config = override(trial.two, [f"train.step_timeout_seconds={STEP_TIMEOUT_SECONDS}"])
    with Job(config, out, log) as job:
        saved_once(job)
        job.send(1, signal.SIGSTOP)
        began = time.monotonic()
        codes = job.wait(STEP_TIMEOUT_SECONDS * 12)
        took = time.monotonic() - began
    named = codes[0] == EXIT_HUNG and "hung: rank 1 in phase" in job.told()
    start_and_end(trial.two, out, log)
    end = end_of(out, trial.whole_two)
    figures = {"seconds_to_end": round(took, 1), "timeout_seconds": STEP_TIMEOUT_SECONDS}
    return [
        Verdict("hang", "named", named, "" if named else f"exit codes {codes}", figures),
        Verdict("hang", "bitwise", end.same, "" if end.same else str(end)),
    ]


def stop(trial: Trial) -> list[Verdict]:
    """SIGTERM to one rank: all save and end, with its exit code, and the run goes on."""
    out, log = trial.out("stop"), trial.log("stop")
    with Job(trial.two, out, log) as job:
        saved_once(job)
        job.send(1, signal.SIGTERM)
        codes = job.wait()
    stopped, expected = stop_of(out), [128 + signal.SIGTERM] * 2
    ended = codes == expected and stopped is not None and stopped.reason == "SIGTERM"
    start_and_end(trial.two, out, log)
    end = end_of(out, trial.whole_two)
    held = ended and end.same and end.steps_redone_max == 0
    return [Verdict("sigterm", "bitwise", held, "" if held else f"exit codes {codes}, {end}")]


def worker_kill(trial: Trial) -> list[Verdict]:
    """SIGKILL to every loader process of a rank: others take their place, and no sample is lost."""
    out, log = trial.out("worker"), trial.log("worker")
    with Job(override(trial.two, ["data.workers=1"]), out, log) as job:
        saved_once(job)
        killed = job.loader_processes(1)
        for process in killed:
            os.kill(process, signal.SIGKILL)
        codes = job.wait()
        again = "its processes are started again" in job.told()
    end = end_of(out, trial.whole_two)
    held = bool(killed) and again and codes == [0, 0] and end.same
    return [Verdict("worker_kill", "exactly once", held, "" if held else f"{killed}, {codes}, {again}, {end}")]


def second_job(trial: Trial) -> list[Verdict]:
    """Another job on the same folder is refused, and the first goes on as if it had not been."""
    out, log = trial.out("second"), trial.log("second")
    with Job(trial.one, out, log) as first:
        saved_once(first)
        with Job(trial.one, out, trial.log("second-other")) as other:
            codes, told = other.wait(), other.told()
        first_codes = first.wait()
    refused = codes == [1] and "is in use by process" in told and first_codes == [0]
    end = end_of(out, trial.whole_one)
    held = refused and end.same
    return [Verdict("second_job", "one writer", held, "" if held else f"{codes}, {first_codes}: {told[-200:]}, {end}")]


def nan(trial: Trial) -> list[Verdict]:
    """A gradient that is not a number, in one step."""
    out, log = trial.out("nan"), trial.log("nan")
    codes = start_and_end(trial.two, out, log, Injected("nan", 1, NAN_STEP))
    rows = read_metrics(out)
    skipped = rows[-1]["skipped_steps"] if rows else 0
    told = f"step {NAN_STEP}: not finite" in log.read_text(encoding="utf-8", errors="replace")
    held = codes == [0, 0] and skipped == 1 and told and rows[-1]["step"] == trial.two.train.steps
    return [Verdict("nan_gradient", "finite", held, "" if held else f"{codes}", {"steps_skipped": skipped})]


def slow(trial: Trial) -> list[Verdict]:
    """A rank that loads slowly."""
    out, log = trial.out("slow"), trial.log("slow")
    short = override(trial.two, ["train.stop_after_steps=8", "train.log_every_steps=4"])
    start_and_end(short, out, log, Injected("slow", 1, SLOW_SECONDS))
    told = log.read_text(encoding="utf-8", errors="replace")
    held = "rank 1 is slow" in told and "rank 0 is slow" not in told
    return [Verdict("slow_rank", "named", held, "" if held else told[-300:])]


def clock(trial: Trial) -> list[Verdict]:
    """A clock that jumps by more than a year at every reading."""
    out, log = trial.out("clock"), trial.log("clock")
    for steps in (trial.one.train.steps // 2, 0):
        part = override(trial.one, [f"train.stop_after_steps={steps}"])
        start_and_end(part, out, log, Injected("clock", 0, CLOCK_DAYS))
    end = end_of(out, trial.whole_one)
    return [Verdict("clock_skew", "clock", end.same, "" if end.same else str(end))]


def damaged_resume(trial: Trial) -> list[Verdict]:
    """A run whose newest checkpoint is damaged goes on from the one before and ends the same."""
    out, log = trial.out("damaged"), trial.log("damaged")
    start_and_end(override(trial.one, [f"train.stop_after_steps={trial.one.train.steps // 2}"]), out, log)
    newest = max((out / CHECKPOINTS).glob("step-*"))
    spoilt = max(newest.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(spoilt.read_bytes())
    content[len(content) // 2] ^= 1
    spoilt.write_bytes(content)
    start_and_end(trial.one, out, log)
    end = end_of(out, trial.whole_one)
    told = "passed over:" in log.read_text(encoding="utf-8", errors="replace")
    held = end.same and told and 0 < end.steps_redone_max <= trial.one.train.save_every_steps
    return [Verdict("damaged_resume", "bitwise", held, "" if held else str(end))]


def disk(trial: Trial) -> list[Verdict]:
    """A disk that fills up, and one that cannot be written; needs `unshare`, as most Linux machines have it."""
    out, keep, file = trial.out("disk"), trial.out("disk-kept"), trial.folder / "disk.json"
    trial.one.save(file)
    inner = [sys.executable, "-m", "xgenvideo.train.chaos.small_disk", str(file), str(out), str(keep)]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *inner], capture_output=True, text=True, check=False
    )
    if done.returncode:
        why = f"could not be tried: {done.stderr[-300:]}"
        return [Verdict(fault, "kept", False, why) for fault in ("disk_full", "read_only")]
    told = json.loads(done.stdout.splitlines()[-1].replace(str(out), "RUN"))
    before = set(told["before"])
    full = "No space left" in told["full"] and before <= set(told["after_full"])
    goes_on = not told["goes_on"] and before <= set(told["after_goes_on"])
    read_only = "Read-only" in told["read_only"] and before <= set(told["after_read_only"])
    same = not told["mended"] and not tensor_differences(keep, trial.whole_one)
    return [
        Verdict("disk_full", "kept", full and same, told["full"] if full else str(told)),
        Verdict("disk_full_goes_on", "kept", goes_on, "" if goes_on else told["goes_on"]),
        Verdict("read_only", "kept", read_only and same, told["read_only"]),
    ]


FAULTS: dict[str, Callable[[Trial], list[Verdict]]] = {
    "hang": hang,
    "stop": stop,
    "worker_kill": worker_kill,
    "second_job": second_job,
    "nan": nan,
    "slow": slow,
    "clock": clock,
    "damaged_resume": damaged_resume,
    "disk": disk,
}
