"""Curation of many generated clips with real pixels, as a user runs it: processor seconds by step, memory of all
processes, and every filter against the planted defects. Run: make bench-curation-clips; hours for 50,000 clips.

Clips are made first, where they are not there yet. Memory is the proportional set size (what processes share counts
once) of every process of the run, summed, sampled twice a second. Curation that was stopped goes on when the command is
given again, but the memory is then that of the last part. Writes bench/results/curation_clips.json.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fair import RESULTS, write

from xgenvideo.data.generate import generate
from xgenvideo.demo.score import read_lines, score_filters

CLIPS = 50_000
SAMPLED_SECONDS = 0.5
CURATION_PACKAGES = ("av", "opencv-python-headless", "rapidocr")
XGV = Path(sys.executable).with_name("xgv")


def run_and_watch(command: list[str], sampled_seconds: float = SAMPLED_SECONDS) -> dict[str, Any]:
    """Run a command in a session of its own: wall seconds, and the most memory of all its processes and of one, MB."""
    begun, most, largest, processes = time.monotonic(), 0.0, 0.0, 0
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while running.poll() is None:
        each = list(memory_of_session(running.pid))
        most, largest, processes = max(most, sum(each)), max(largest, *each, 0.0), max(processes, len(each))
        time.sleep(sampled_seconds)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with code {running.returncode}")
    seconds = time.monotonic() - begun
    return {
        "wall_seconds": round(seconds, 2),
        "peak_mb": round(most),
        "peak_mb_of_one_process": round(largest),
        "processes": processes,
    }


def memory_of_session(session: int) -> Iterator[float]:
    """Proportional set size of each process of a session, in 10^6 bytes."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[3]) == session:
                lines = (path.parent / "smaps_rollup").read_text(encoding="utf-8").splitlines()
                yield next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:")), 0.0)
        except OSError:  # it has ended meanwhile
            continue


def steps_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each step that took time: inputs that came and were left, processor seconds, inputs a second of one core."""
    rows, came = [], record["pairs_in"]
    left_by_step = record["funnel"] | {"write": record["pairs_kept"]}
    for name, left in left_by_step.items():
        seconds = record["timings"].get(name)
        if seconds:
            row = {"step": name, "came": came, "left": left, "processor_seconds": round(seconds, 1)}
            rows.append(row | {"inputs_a_second_of_a_core": round(came / seconds, 1)})
        came = left
    return rows


def scores_of(raw: Path, out: Path) -> dict[str, Any]:
    """Every filter against what was planted: pairs with the defect, dropped for it, and both."""
    planted = {row["key"]: set(row["defects"]) for row in read_lines(raw / "defects.jsonl")}
    dropped = {row["key"]: row["reason"] for row in read_lines(out / "audit.jsonl") if row["reason"] is not None}
    found = score_filters(planted, dropped)
    return {
        defect: {"planted": score.planted, "dropped": score.dropped, "right": score.right}
        for defect, score in found.items()
    }


def measure(raw: Path, out: Path, clips: int, settings: list[str]) -> dict[str, Any]:
    """Generate, curate, and read what curation says of itself."""
    generate(raw, clips)
    watched = run_and_watch([str(XGV), "curate", str(raw), "--out", str(out), *settings])
    record = json.loads((out / "curation.json").read_text(encoding="utf-8"))
    folders = {"videos": raw / "videos", "clips": out.with_name(out.name + ".work") / "clips", "dataset": out}
    sizes = {name: sum(path.stat().st_size for path in folder.rglob("*")) for name, folder in folders.items()}
    return {
        "clips": clips,
        "settings": settings,
        "pairs_in": record["pairs_in"],
        "kept": record["pairs_kept"],
        "dropped": record["dropped"],
        **watched,
        "processor_seconds": round(sum(record["timings"].values()), 1),
        "steps": steps_of(record),
        "megabytes": {name: round(size / 1e6) for name, size in sizes.items()},
        "filters": scores_of(raw, out),
    }


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--folder", type=Path, required=True, help="where clips, scores and the dataset are written")
    parser.add_argument("--json", type=Path, default=RESULTS / "curation_clips.json")
    parser.add_argument("settings", nargs="*", metavar="curate.field=value")
    parsed = parser.parse_args()
    found = measure(parsed.folder / "raw", parsed.folder / "dataset", parsed.clips, parsed.settings)
    write(parsed.json, found, *CURATION_PACKAGES)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
