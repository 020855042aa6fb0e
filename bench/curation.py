"""Curation beside other ways to do it, on the same clips: processor seconds and wall seconds a clip, and memory.

Run: make bench-curation ARGS="--data-juicer PYTHON --clips FOLDER". Sides take turns, each a fresh process whose start
is counted; processor seconds are those of all its processes, memory is their proportional set size (what they share
counts once), summed, the most of ten samples a second. FOLDER holds videos and captions.jsonl, read in place.

- ours, comparable steps: captions, decoding with storing of frames, motion, near duplicates.
- ours, all steps: as `xgv curate` does by default (OCR, marks, picture, alignment beside these).
- plain PyAV: plain_side.py, decoding and storing alone.
- data-juicer: data_juicer_side.py in the environment of PYTHON (pip install -c constraints.txt py-data-juicer
  opencv-python-headless av ray), its filters of captions, length, size and motion, and equal videos; stores no frames.

Writes bench/results/curation.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curation_clips import CURATION_PACKAGES, run_and_watch
from fair import RESULTS, write

from xgenvideo.data.generate import generate

GENERATED, ROUNDS, PROCESSES, SAMPLED_SECONDS = 400, 5, (1, 2), 0.1
HERE = Path(__file__).parent
XGV = Path(sys.executable).with_name("xgv")
OURS, WHOLE, PLAIN, JUICER = "ours, comparable steps", "ours, all steps", "plain PyAV", "data-juicer"


@dataclass(frozen=True)
class Run:
    """One side's turn: seconds a clip, and 10^6 bytes."""

    wall: float
    busy: float
    peak_mb: float


def listing_of(raw: Path, place: Path) -> Path:
    """A listing of a raw folder's clips for the others: "video", a path, and "caption", a line each."""
    rows = map(json.loads, (raw / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    said = [{"video": str((raw / row["video"]).resolve()), "caption": row["caption"]} for row in rows]
    listing = place / "listing.jsonl"
    listing.write_text("".join(json.dumps(row) + "\n" for row in said), encoding="utf-8")
    return listing


def link_clips(source: Path, raw: Path) -> Path:
    """A raw folder with copies of another folder's clips, and their captions."""
    raw.mkdir()
    lines = []
    for row in map(json.loads, (source / "captions.jsonl").read_text(encoding="utf-8").splitlines()):
        name = Path(row["video"]).name
        (raw / name).write_bytes((source / row["video"]).read_bytes())
        pair = {"key": Path(name).stem, "video": name, "caption": row["caption"], "source": name}
        lines.append(json.dumps(pair) + "\n")
    (raw / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
    return raw


def command_of(side: str, raw: Path, listing: Path, out: Path, processes: int, juicer: str) -> list[str]:
    """What a user would type."""
    if side in (OURS, WHOLE):
        steps = ["curate.steps=captions,motion,duplicates"] if side == OURS else []
        return [str(XGV), "curate", str(raw), "--out", str(out / "dataset"), f"curate.workers={processes}", *steps]
    python, script = (sys.executable, "plain_side.py") if side == PLAIN else (juicer, "data_juicer_side.py")
    return [python, str(HERE / script), str(listing), str(out), str(processes)]


def measure(raw: Path, rounds: int, sides: list[str], juicer: str, place: Path) -> dict[str, Any]:
    """All sides on one set of clips."""
    listing = listing_of(raw, place)
    clips = len(listing.read_text(encoding="utf-8").splitlines())
    found: dict[str, dict[str, list[Run]]] = {}
    for _ in range(rounds):
        for processes in PROCESSES:
            for side in sides:
                with tempfile.TemporaryDirectory(dir=place) as out:
                    command = command_of(side, raw, listing, Path(out), processes, juicer)
                    before = busy_of_children()
                    watched = run_and_watch(command, SAMPLED_SECONDS)
                    busy = (busy_of_children() - before) / clips
                run = Run(watched["wall_seconds"] / clips, busy, watched["peak_mb"])
                found.setdefault(f"{processes} process{'es' * (processes > 1)}", {}).setdefault(side, []).append(run)
                print(f"{clips} clips, {processes}, {side}: {run}", file=sys.stderr, flush=True)
    return {"clips": clips, "processes": {count: dict(summaries(runs)) for count, runs in found.items()}}


def busy_of_children() -> float:
    """Processor seconds of all processes that this one has waited for, and they."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def summaries(runs: dict[str, list[Run]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Medians of each side, and how many times its processor and wall seconds ours took, round by round."""
    for side, own in runs.items():
        medians = {name: statistics.median(asdict(run)[name] for run in own) for name in ("wall", "busy", "peak_mb")}
        row: dict[str, Any] = {
            "wall_ms_a_clip": round(1000 * medians["wall"], 2),
            "processor_ms_a_clip": round(1000 * medians["busy"], 2),
            "peak_mb": round(medians["peak_mb"]),
            "wall_over_processor": round(medians["wall"] / medians["busy"], 2),
        }
        if side not in (OURS, WHOLE):
            for name in ("busy", "wall"):
                ratios = [getattr(run, name) / getattr(ours, name) for run, ours in zip(own, runs[OURS], strict=True)]
                row[f"{name}_over_ours"] = round(statistics.median(ratios), 2)
                row[f"{name}_over_ours_spread"] = [round(min(ratios), 2), round(max(ratios), 2)]
        yield side, row


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="a folder of videos with captions.jsonl, beside the generated clips")
    parser.add_argument("--data-juicer", default="", metavar="PYTHON", help="of the environment it is installed in")
    parser.add_argument("--generated", type=int, default=GENERATED)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, default=RESULTS / "curation.json")
    parsed = parser.parse_args()
    sides = [OURS, WHOLE, PLAIN, *([JUICER] if parsed.data_juicer else [])]
    sets: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        generate(place / "generated", parsed.generated, defect_share=0.0)  # a broken file ends the plain loop
        raws = {"generated clips": place / "generated"}
        if parsed.clips:
            raws["real clips"] = link_clips(parsed.clips, place / "real")
        for what, raw in raws.items():
            sets[what] = measure(raw, parsed.rounds, sides, parsed.data_juicer, place)
    code = "from importlib.metadata import version; print(version('py-data-juicer'))"
    about: dict[str, Any] = {"rounds": parsed.rounds}
    if parsed.data_juicer:
        juicer = subprocess.run([parsed.data_juicer, "-c", code], capture_output=True, text=True, check=True)
        about["py-data-juicer"] = juicer.stdout.strip()
    write(parsed.json, {"about": about, "sets": sets}, *CURATION_PACKAGES)
    print(json.dumps(sets, indent=1))


if __name__ == "__main__":
    main()
