"""The one rule of all benches: sides take turns, in rounds that had the processor; results say where they are from.

A bench of one process with one thread takes at least ten rounds, gives medians and quartiles, and measures again a
round in which another process took the processor. `python bench/fair.py FILE` writes machine, versions, commit and date
into results that another command wrote.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from xgenvideo.release.figures import hardware

ROUNDS, WARM_UP, MOST_TRIES = 10, 2, 100
MOST_WALL = 1.1  # wall seconds a processor second
START_SECONDS = 0.005  # of a new process, in which nobody has the processor
RESULTS = Path(__file__).parent / "results"
ABOUT = ("machine", "versions", "commit", "date")


def undisturbed(wall: float, busy: float) -> bool:
    """Whether a round of one thread had the processor for itself."""
    return wall <= MOST_WALL * busy + START_SECONDS


def clean_round(measure: Callable[[], tuple[float, float]]) -> float:
    """Wall seconds of the first undisturbed call of `measure`, which gives wall and processor seconds.

    Raises SystemExit after MOST_TRIES calls.
    """
    for _ in range(MOST_TRIES):
        wall, busy = measure()
        if undisturbed(wall, busy):
            return wall
    raise SystemExit(f"the machine is too busy: no undisturbed round in {MOST_TRIES}")


def clean_seconds(work: Callable[..., object], ready: Callable[[], object] | None = None) -> float:
    """Wall seconds of an undisturbed call of `work` in this process; `ready`, not counted, makes its argument anew."""

    def measure() -> tuple[float, float]:
        given = () if ready is None else (ready(),)
        wall, busy = time.perf_counter(), time.process_time()
        work(*given)
        return time.perf_counter() - wall, time.process_time() - busy

    return clean_round(measure)


def process_round(command: Sequence[str]) -> tuple[float, float, float]:
    """Wall and processor seconds of a command and its peak memory in 10^6 bytes. Raises SystemExit where it fails."""
    began = time.perf_counter()
    # Its output goes nowhere: a full pipe would stop it, and wait4, which tells its memory, reads none.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6


def alternate(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Undisturbed wall seconds of each side by round, after WARM_UP uncounted rounds; the order turns each round."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + WARM_UP):
        for name in list(sides) if number % 2 else reversed(list(sides)):
            seconds = clean_seconds(sides[name])
            if number >= WARM_UP:
                taken[name].append(seconds)
    return taken


def quartiles(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Quartiles of theirs over ours, round by round: what the machine does in a round slows both."""
    ratios = [other / own for other, own in zip(theirs, ours, strict=True)]
    return [round(value, 3) for value in statistics.quantiles(ratios, n=4)]


def commit() -> str:
    """The commit of the checkout; "+" where its code has been changed since."""
    root = Path(__file__).parent.parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "bench", ":!bench/results")
    return (git("rev-parse", "--short", "HEAD") or "none") + ("+" if changed else "")


def about(*packages: str) -> dict[str, Any]:
    """Machine, versions of xgenvideo, torch and `packages`, commit, date."""
    return {
        "machine": hardware() | {"python": platform.python_version(), "load_average": round(os.getloadavg()[0], 2)},
        "versions": {name: version(name) for name in ("xgenvideo", "torch", *packages)},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def write(path: Path, found: dict[str, Any], *packages: str) -> None:
    """Results as JSON, where they were measured first; `found["about"]` may hold more to say."""
    told = {"about": found.get("about", {}) | about(*packages)} | {k: v for k, v in found.items() if k != "about"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write(Path(name), json.loads(Path(name).read_text(encoding="utf-8")))
