"""How long `xgv --help`, plans and imports take. Run: make bench-startup. Writes bench/results/startup.json."""

import argparse
import statistics
import sys
from pathlib import Path

from fair import RESULTS, ROUNDS, process_round, undisturbed, write

TRIES = 20
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "xgv --help": ["-c", "from xgenvideo.cli import main; main(['--help'])"],
    "xgv recipes tiny": ["-c", "from xgenvideo.cli import main; main(['recipes', 'tiny'])"],
    "import torch": ["-c", "import torch"],
    "import xgenvideo.models.video_lm": ["-c", "import xgenvideo.models.video_lm"],
    "import xgenvideo.data.video": ["-c", "import xgenvideo.data.video"],
    "xgv plan video_30b": ["-c", "from xgenvideo.cli import main; main(['plan', 'video_30b'])"],
    "xgv plan video_30b --search": ["-c", "from xgenvideo.cli import main; main(['plan', 'video_30b', '--search'])"],
}


def once(arguments: list[str]) -> tuple[float, float, float]:
    """Wall-clock and processor seconds and peak memory of an undisturbed run. Raises SystemExit where there is none."""
    for _ in range(TRIES):
        found = process_round([sys.executable, *arguments])
        if undisturbed(*found[:2]):
            return found
    raise SystemExit(f"the machine is too busy: no undisturbed run in {TRIES}")


def main() -> None:
    """Measure all in turn, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    asked = parser.parse_args()
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in COMMANDS}
    for number in range(asked.rounds + 1):  # the first warms the disk cache
        for name, arguments in COMMANDS.items():
            found = once(arguments)
            if number:
                taken[name].append(found)
    measured = {}
    for name, runs in taken.items():
        walls = [run[0] for run in runs]
        wall, busy, peak = (statistics.median(run[i] for run in runs) for i in range(3))
        measured[name] = {
            "median_seconds": round(wall, 3),
            "quartiles": [round(value, 3) for value in statistics.quantiles(walls, n=4)],
            "median_cpu_seconds": round(busy, 3),
            "peak_mb": round(peak, 1),
        }
        print(f"{name:36} median {wall:6.3f} s   processor {busy:6.3f} s   peak {peak:6.1f} MB")
    write(asked.out, {"about": {"rounds": asked.rounds}, "seconds": measured})


if __name__ == "__main__":
    main()
