"""What curation's steps cost a clip, for `xgv plan`: python bench/curation_costs.py FOLDER --measured-on WORDS.

FOLDER holds videos and captions.jsonl ({"video", "caption"}), read in place: the clips are linked, and copied with a
few bytes behind the last box, which leave the pictures as they are. A step's seconds a clip are the difference between
a run of several copies of each clip and one of a single copy, over the clips that more came: starting processes and
loading models, once for ten thousand pairs, is not in it. One process, one thread; each run is repeated and the median
taken. Captions and writing are taken from the single copy; what one process does over all inputs (templates, near
duplicates, bookkeeping) from bench/results/curation_scale.json; steps that are off by default from every eighth clip,
alone: TransNet V2 looks at every frame.
Writes src/xgenvideo/plan/facts/curation.json.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

COPIES, REPEATS, ASKED_EVERY = 4, 3, 8
OVER_ALL = ("captions", "write")
SCALE = Path(__file__).parent / "results" / "curation_scale.json"
# Steps of one process over all inputs, and its bookkeeping: by the phases of the run over a million rows.
BY_PHASE = {"templates": "captions of one template", "duplicates": "near duplicates"}
BOOKKEEPING = ("read and select", "language, captions, units", "counts", "audit", "report")
FACTS = Path(__file__).parent.parent / "src" / "xgenvideo" / "plan" / "facts" / "curation.json"
WHOLE_CLIPS = ["curate.min_clip_seconds=0.1", "curate.max_clip_seconds=3600"]
ASKED = {
    "shots light": ["curate.split_shots=light", "curate.steps=", *WHOLE_CLIPS],
    "shots transnetv2": ["curate.split_shots=transnetv2", "curate.steps=", *WHOLE_CLIPS],
    "safety": ["curate.steps=safety"],
}

Run = dict[str, Any]


def alone() -> tuple[dict[str, float], float]:
    """Seconds a clip of the steps over all inputs, and seconds an input of the bookkeeping around them."""
    found = json.loads(SCALE.read_text(encoding="utf-8"))
    seconds = {row["phase"]: float(row["processor_seconds"]) for row in found["phases"]}
    steps = {step: seconds[phase] / found["kept"] for step, phase in BY_PHASE.items()}
    return steps, sum(seconds[phase] for phase in BOOKKEEPING) / found["rows"]


def write_raw(source: Path, folder: Path, copies: int, every: int = 1) -> None:
    """A folder of videos and captions with so many copies of each clip, or of every eighth."""
    folder.mkdir()
    for row in map(json.loads, (source / "captions.jsonl").read_text(encoding="utf-8").splitlines()[::every]):
        content = (source / row["video"]).read_bytes()
        for copy in range(copies):
            path = folder / f"{Path(row['video']).stem}-{copy}.mp4"
            # A box "free" of 12 bytes, its own for each copy.
            tail = (12).to_bytes(4, "big") + b"free" + copy.to_bytes(4, "big") if copy else b""
            path.write_bytes(content + tail)
            path.with_suffix(".txt").write_text(row["caption"], encoding="utf-8")


def curate(raw: Path, place: Path, settings: list[str]) -> Run:
    """The record of one curation, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        out = Path(folder) / "dataset"
        xgv = Path(sys.executable).with_name("xgv")
        command = [str(xgv), "curate", str(raw), "--out", str(out), "curate.workers=1", *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found: Run = json.loads((out / "curation.json").read_text(encoding="utf-8"))
        return found


def came_to(run: Run) -> dict[str, int]:
    """Inputs that came to each step of the funnel, and to the writing."""
    steps = list((run["funnel"] | {"write": run["pairs_kept"]}).items())
    return {name: before for (name, _), (_, before) in zip(steps[1:], steps, strict=False)}


def each(few: list[Run], many: list[Run], step: str) -> float:
    """Seconds a clip that came to a step, of the median runs."""
    low, high = (statistics.median(run["timings"].get(step, 0.0) for run in runs) for runs in (few, many))
    came, more = (float(came_to(runs[0]).get(step) or runs[0]["pairs_in"]) for runs in (few, many))
    if step in OVER_ALL:
        return float(low / came)
    return float((high - low) / (more - came))


def ask(source: Path, place: Path) -> dict[str, float]:
    """Seconds an input of the steps that are off by default."""
    raws = [place / "few-asked", place / "many-asked"]
    for raw, copies in zip(raws, (1, COPIES), strict=True):
        write_raw(source, raw, copies, ASKED_EVERY)
    clips = len(list(raws[0].glob("*.mp4")))
    asked = {}
    for name, settings in ASKED.items():
        low, high = (curate(raw, place, settings)["timings"][name.split()[0]] for raw in raws)
        asked[name] = round((high - low) / (clips * (COPIES - 1)), 4)
    return asked


def main() -> None:
    """Measure, write the facts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--measured-on", required=True, help="what the clips are, for whoever reads a plan")
    parser.add_argument("--out", type=Path, default=FACTS)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        raws = [place / "few", place / "many"]
        for raw, copies in zip(raws, (1, COPIES), strict=True):
            write_raw(parsed.folder, raw, copies)
        runs: list[list[Run]] = [[], []]
        for _ in range(parsed.repeats):  # in turn: other work on the machine falls on both
            for raw, found in zip(raws, runs, strict=True):
                found.append(curate(raw, place, []))
        few, many = runs
        asked = ask(parsed.folder, place)
    one, came = few[0], came_to(few[0])
    timings = {
        step: round(each(few, many, step) * float(came.get(step) or one["pairs_in"]), 3) for step in one["timings"]
    }
    over_all, bookkeeping = alone()
    timings |= {step: round(seconds * float(came[step]), 6) for step, seconds in over_all.items()}
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    facts = {
        "measured_on": parsed.measured_on,
        **{name: one[name] for name in ("pairs_in", "pairs_kept", "dropped", "funnel", "bytes")},
        "timings": timings,
        "seconds_an_input_if_asked": asked,
        "bookkeeping_seconds_an_input": round(bookkeeping, 6),
        "machine": {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
        "commit": subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    parsed.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
