"""How long `xgv --help` and the heavier imports take. Run: make bench-startup. Writes bench/results/startup.json."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 10
RESULTS = Path(__file__).parent / "results"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "xgv --help": ["-c", "from xgenvideo.cli import main; main(['--help'])"],
    "xgv recipes tiny": ["-c", "from xgenvideo.cli import main; main(['recipes', 'tiny'])"],
    "import torch": ["-c", "import torch"],
    "import xgenvideo.models.video_lm": ["-c", "import xgenvideo.models.video_lm"],
    "import xgenvideo.data.video": ["-c", "import xgenvideo.data.video"],
}


def once(arguments: list[str]) -> tuple[float, float]:
    """Wall-clock and processor seconds of one run."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    taken, after = time.perf_counter() - began, os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return taken, spent


def main() -> None:
    """Measure all in turn, print a table, write the results."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for number in range(ROUNDS + 1):  # the first warms the disk cache
        for name, arguments in COMMANDS.items():
            found = once(arguments)
            if number:
                taken[name].append(found)
    measured = {}
    for name, runs in taken.items():
        wall, spent = (statistics.median(run[i] for run in runs) for i in range(2))
        least = min(run[0] for run in runs)
        measured[name] = {
            "median_seconds": round(wall, 3),
            "median_cpu_seconds": round(spent, 3),
            "min_seconds": round(least, 3),
        }
        print(f"{name:36} median {wall:6.3f} s   processor {spent:6.3f} s   min {least:6.3f} s")
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine()}
    RESULTS.mkdir(exist_ok=True)
    about = {"machine": machine, "rounds": ROUNDS, "date": time.strftime("%Y-%m-%d")}
    text = json.dumps({**about, "seconds": measured}, indent=2) + "\n"
    (RESULTS / "startup.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
