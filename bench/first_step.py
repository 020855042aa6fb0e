"""How long `xgv train tiny` takes to its first optimizer step, and the most memory it needs until it ends.

Run: make bench-first-step. Fresh processes on a small generated dataset whose frozen features were made before; one
unmeasured round warms the disk cache. The first step is done when its line stands in metrics.jsonl. Writes
bench/results/first_step.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from xgenvideo import __version__
from xgenvideo.demo.journey import QUICK
from xgenvideo.demo.steps import curate_clips, make_clips
from xgenvideo.recipes import find

ROUNDS = 5
RESULTS = Path(__file__).parent / "results" / "first_step.json"
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
    # Its output goes nowhere: a full pipe would stop it, and wait4, which tells its memory, reads none.
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(str(part) for part in command)} ended with {process.returncode}")
    stepped = (out / "metrics.jsonl").stat().st_mtime
    unit = 1 if sys.platform == "darwin" else 1024
    return Start(stepped - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e6)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS)
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
        "rounds": asked.rounds,
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "versions": {"xgenvideo": __version__, "torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"),
    }
    print(json.dumps(found, indent=2))
    asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
