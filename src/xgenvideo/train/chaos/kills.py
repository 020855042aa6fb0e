"""SIGKILL at seeded moments, many of them inside a save, until a run has ended all the same; again and again."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from xgenvideo.checkpoint.ledger import LEDGER
from xgenvideo.checkpoint.retention import UNFINISHED
from xgenvideo.checkpoint.run import CHECKPOINTS
from xgenvideo.config import RunConfig
from xgenvideo.errors import TrainError
from xgenvideo.plan.operations import goodput
from xgenvideo.train.chaos.ends import End, end_of
from xgenvideo.train.chaos.job import Job
from xgenvideo.train.log import read_metrics

POLL_SECONDS = 0.0005
LONGEST_SAVE_SECONDS = 0.04  # a kill inside a save comes at most so long after its folder is seen
WAIT_SECONDS = 300.0


@dataclass
class Kills:
    """What a campaign on one layout did and found. Seconds are of the wall clock."""

    processes: int
    interval: int
    points: int = 0
    points_in_save: int = 0
    seconds: float = 0.0
    useful_seconds: float = 0.0
    predicted: float = 0.0
    ends: list[End] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Share of the time that the undisturbed runs would have taken."""
        return self.useful_seconds / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Pace:
    """How fast the undisturbed run went: seconds of a step, and from its start to its first step."""

    step: float
    start: float


def undisturbed(config: RunConfig, out: Path, log: Path) -> Pace:
    """Run to the end without a fault."""
    began = time.monotonic()
    with Job(config, out, log) as job:
        codes = job.wait()
        if any(codes):
            raise TrainError(
                f"the undisturbed run {out} ended with {codes}; {log} has what it said: {job.told()[-400:]}"
            )
    rows = read_metrics(out)
    step = sorted(row["seconds_per_step"] for row in rows)[len(rows) // 2]
    return Pace(step, max(0.0, time.monotonic() - began - sum(row["seconds_per_step"] for row in rows)))


def kill_often(
    config: RunConfig, folder: Path, kills: int, in_save: int, seed: int, say: Callable[[str], None]
) -> Kills:
    """So many kills, `in_save` of them inside a save, over as many runs as it takes; each is compared at its end."""
    rng = random.Random(f"{seed}/{config.layout.world}")
    whole, log = folder / "whole", folder / "log.txt"
    pace = undisturbed(config, whole, log)
    found = Kills(config.layout.world, config.train.save_every_steps)
    while found.points < kills or found.points_in_save < in_save:
        out, began = folder / f"run-{len(found.ends):02d}", time.monotonic()
        while found.points < kills or found.points_in_save < in_save:
            inside = rng.random() < (in_save - found.points_in_save) / max(1, kills - found.points)
            with Job(config, out, log) as job:
                if not strike(job, config, pace, rng, inside, found):
                    break
        finish(config, out, log)
        found.seconds += time.monotonic() - began
        found.useful_seconds += config.train.steps * pace.step
        found.ends.append(end_of(out, whole))
        say(f"{found.processes} processes: {found.points} kills, {found.points_in_save} inside a save")
        if found.ends[-1].same:
            shutil.rmtree(out)
    failure = found.seconds / max(1, found.points) - pace.start
    interval = config.train.save_every_steps * pace.step
    found.predicted = goodput(0.0, 0.0, max(failure, 1e-9), interval, pace.start)
    return found


def finish(config: RunConfig, out: Path, log: Path) -> None:
    """Let the run end."""
    with Job(config, out, log) as job:
        codes = job.wait()
        if any(codes):
            raise TrainError(f"{out}: could not go on after a kill, its ranks ended with {codes}: {job.told()[-600:]}")


def strike(job: Job, config: RunConfig, pace: Pace, rng: random.Random, inside: bool, found: Kills) -> bool:
    """Wait for the moment and kill every rank, one first; False when the job ended before it."""
    folder, ledger = job.out / CHECKPOINTS, job.out / LEDGER
    if inside:
        known = committed(folder)
        # Not in the first save of a start: the run has to get ahead.
        come = until(job, lambda: committed(folder) - known) and until(job, lambda: unfinished(folder))
        time.sleep(rng.uniform(0, LONGEST_SAVE_SECONDS) if come else 0)
    elif rng.random() < 0.2:
        time.sleep(rng.uniform(0, pace.start))
    else:
        begun = len(list(ledger.glob("*.jsonl"))) + len(job.ranks)
        until(job, lambda: len(list(ledger.glob("*.jsonl"))) >= begun)
        time.sleep(rng.uniform(0, 2 * config.train.save_every_steps * pace.step))
    victim, apart = rng.randrange(len(job.ranks)), rng.uniform(0, 0.1) * (len(job.ranks) > 1)
    if not job.kill(victim, apart):
        return False
    found.points += 1
    found.points_in_save += bool(unfinished(folder))
    return True


def until(job: Job, come: Callable[[], object]) -> bool:
    """Wait until `come`; False when the job ends first."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if come():
            return True
        if not job.running:
            return False
        time.sleep(POLL_SECONDS)
    return False


def committed(folder: Path) -> set[str]:
    """Names of the checkpoints that are there."""
    return {path.name for path in folder.glob("step-*")}


def unfinished(folder: Path) -> set[str]:
    """Names of the saves that have begun and not ended."""
    return {path.name for path in folder.glob(f"{UNFINISHED}*")}
