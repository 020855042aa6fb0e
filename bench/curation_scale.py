"""Memory of curation over a listing of a million clips without pixels: reading, the published subset, captions against
one another, splits, the plan of units, and the audit. Run: python bench/curation_scale.py [--rows N].

The listing has InternVid's form; its texts are drawn from words, a tenth of them from one template. The part of the
manifest that is written is the audit, a line an input: the dataset's own has a row for each clip with its pictures.
Phases run one after another in one process; memory is the process's peak so far. Writes
bench/results/curation_scale.json.
"""

import argparse
import json
import platform
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xgenvideo.curate.pairs import choose_split
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.sources import read_source
from xgenvideo.curate.stages import Item, Workplace
from xgenvideo.curate.steps import OF_RECORDS, judge
from xgenvideo.curate.units import Ledger, describe, write_whole

CLIPS_A_VIDEO = 20  # Panda-70M has 19 in the mean, InternVid 33
WORDS = 4000
RESULTS = Path(__file__).parent / "results" / "curation_scale.json"


def write_listing(path: Path, rows: int) -> None:
    """InternVid lines; the same seed, the same bytes."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnoprstuvw", k=rng.randint(3, 9))) for _ in range(WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            if number % 10:
                caption = " ".join(rng.choices(words, k=rng.randint(8, 16)))
            else:
                caption = f"a man is talking about {rng.choice(words)} in front of a camera in a room with a window"
            start = 5 * (number % CLIPS_A_VIDEO)
            minute, second = divmod(start, 60)
            row = {
                "YoutubeID": f"vid{number // CLIPS_A_VIDEO:08d}", "Caption": caption,
                "Start_timestamp": f"00:{minute:02d}:{second:02d}.000",
                "End_timestamp": f"00:{minute:02d}:{second + 4:02d}.500",
                "UMT_Score": round(rng.random(), 6), "Aesthetic_Score": round(rng.uniform(3, 7), 4),
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


class Phases:
    """Runs phases and remembers processor seconds and the peak of memory after each."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """What `work` returns."""
        begun = time.process_time()
        result = work()
        spent = round(time.process_time() - begun, 1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self.rows.append({"phase": name, "processor_seconds": spent, "peak_mb": peak})
        print(f"{name:<28} {spent:7.1f} s {peak:6d} MB", flush=True)
        return result


def measure(folder: Path, rows: int, preset: str) -> dict[str, Any]:
    """All phases over a listing of so many rows."""
    listing, phases = folder / "listing.jsonl", Phases()
    settings = CurateSettings(steps=("language", "captions"), preset=preset, max_alike_captions=50)
    phases.run("(write the listing)", lambda: write_listing(listing, rows))
    entries = phases.run("read and select", lambda: read_source(listing, None, preset, folder / "unpacked"))
    items = phases.run("items", lambda: [Item(number, entry) for number, entry in enumerate(entries)])
    phases.run("hash of the input", lambda: describe(items))
    with Workplace(folder / "work", settings, None) as work:
        phases.run("language and captions", lambda: judge(items, work, OF_RECORDS))
        kept = [item for item in items if item.kept]
        phases.run("split by source", lambda: set_splits(kept, settings))
        ledger = Ledger(work)
        units = phases.run("plan of units", lambda: list(plan(kept, ledger, settings.unit_pairs)))
    phases.run("audit", lambda: write_audit(folder / "audit.jsonl", items))
    reasons = {reason: sum(item.reason == reason for item in items) for reason in {item.reason for item in items}}
    return {
        "rows": rows,
        "preset": preset or "none",
        "kept": len(kept),
        "units": len(units),
        "outcomes": {str(reason): count for reason, count in sorted(reasons.items(), key=str)},
        "phases": phases.rows,
        "peak_mb": phases.rows[-1]["peak_mb"],
    }


def write_audit(path: Path, items: list[Item]) -> None:
    """As the run writes it."""
    write_whole(path, (json.dumps(item.to_dict()) + "\n" for item in items))


def set_splits(items: list[Item], settings: CurateSettings) -> None:
    """As decoding does, before it opens a file."""
    for item in items:
        assert item.entry.pair is not None
        item.split = choose_split(item.entry.pair, settings.heldout_share).split


def plan(items: list[Item], ledger: Ledger, size: int) -> Iterator[bool]:
    """For each unit whether it is finished."""
    for start in range(0, len(items), size):
        yield ledger.read(items[start : start + size]) is not None


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--preset", default="")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), parsed.rows, parsed.preset)
    about = {"machine": platform.machine(), "python": platform.python_version()}
    parsed.json.write_text(json.dumps(found | {"about": about}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
