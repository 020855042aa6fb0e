"""How long `xgv train tiny` takes to its first optimizer step, and the most memory it needs until it ends.

Run: make bench-first-step. Fresh processes on a small generated dataset whose frozen features were made before; one
unmeasured round warms the disk cache. The first step is done when its line stands in metrics.jsonl. No
round is refused: a run waits for the disk, so that wall and processor time say nothing of others. Writes
bench/results/first_step.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fair import RESULTS, ROUNDS, process_round, write

from xgenvideo.demo.journey import QUICK
from xgenvideo.demo.steps import curate_clips, make_clips
from xgenvideo.recipes import find

XGV = Path(sys.executable).with_name("xgv")


@dataclass(frozen=True)
class Start:
    """One run of one step: wall-clock seconds to the step, processor seconds and peak memory of the whole command."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def start(dataset: Path, out: Path) -> Start:
    """Train one step in a fresh process."""
    command = [XGV, "train", "tiny", f"data.shards={dataset}", "train.steps=1", "--out", out]
    began = time.time()
    _, busy, peak = process_round([str(part) for part in command])
    return Start((out / "metrics.jsonl").stat().st_mtime - began, busy, peak)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "first_step.json")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_clips(folder / "raw", QUICK.clips, QUICK.seed, QUICK.defect_share)
        curate_clips(folder / "raw", folder / "dataset", find("tiny"), lambda text: None)
        starts = [start(folder / "dataset", folder / f"run{number}") for number in range(asked.rounds + 1)][1:]
    medians = {
        key: round(statistics.median(getattr(one, key) for one in starts), 2)
        for key in ("seconds", "cpu_seconds", "peak_mb")
    }
    found = {
        "median": medians,
        "seconds_spread": [round(min(one.seconds for one in starts), 2), round(max(one.seconds for one in starts), 2)],
        "about": {"rounds": asked.rounds, "threads": os.environ.get("OMP_NUM_THREADS", "default")},
    }
    print(json.dumps(found, indent=2))
    write(asked.out, found)


if __name__ == "__main__":
    main()
