"""How long `xgv --help` and the heavier imports take. Run: make bench. Writes bench/results/startup.json."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 7
RESULTS = Path(__file__).parent / "results"
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "xgv --help": ["-c", "from xgenvideo.cli import main; main(['--help'])"],
    "xgv recipes tiny": ["-c", "from xgenvideo.cli import main; main(['recipes', 'tiny'])"],
    "import torch": ["-c", "import torch"],
    "import xgenvideo.models.video_lm": ["-c", "import xgenvideo.models.video_lm"],
    "import xgenvideo.data.video": ["-c", "import xgenvideo.data.video"],
}


def seconds(arguments: list[str]) -> list[float]:
    """Wall-clock seconds of each round, fastest first; one unmeasured round before warms the disk cache."""
    taken = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        taken.append(time.perf_counter() - started)
    return sorted(taken[1:])


def main() -> None:
    """Measure all, print a table, write the results."""
    measured = {}
    for name, arguments in COMMANDS.items():
        taken = seconds(arguments)
        measured[name] = {"median_seconds": round(statistics.median(taken), 3), "min_seconds": round(taken[0], 3)}
        print(f"{name:36} median {statistics.median(taken):6.3f} s   min {taken[0]:6.3f} s")
    machine = {"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.machine()}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine, "rounds": ROUNDS, "seconds": measured}, indent=2) + "\n"
    (RESULTS / "startup.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
