"""What curation holds in memory for each input, counted at a small scale: a million rows are to fit in 2 GB."""

import hashlib
import importlib.util
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from xgenvideo.curate.duplicates import find_duplicates, fingerprint
from xgenvideo.curate.language import LanguageDetector
from xgenvideo.curate.neighbours import KEPT, KINDS, WORDS, find_neighbours
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.stages import Workplace
from xgenvideo.curate.steps import OF_RECORDS, judge
from xgenvideo.curate.store import ScoreStore
from xgenvideo.data.shards import publish_dataset
from xgenvideo.records import Sample

BENCH = Path(__file__).parent.parent.parent / "bench" / "curation_scale.py"
MEASURED = {"motion": {f"score {number}": number / 7 for number in range(150)}}  # as large as what decoding measures


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    specification = importlib.util.spec_from_file_location("bench_curation_scale", BENCH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def held(make: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of Python's and NumPy's objects while what was made is alive, and the most there were on the way."""
    tracemalloc.start()
    try:
        made = make()
        now, most = tracemalloc.get_traced_memory()
        del made
    finally:
        tracemalloc.stop()
    return now, most


def test_a_row_of_a_listing_takes_under_two_thousand_bytes(scale: ModuleType, tmp_path: Path) -> None:
    settings = CurateSettings(steps=("language", "captions"))

    def judged(rows: int) -> list[Any]:
        folder = tmp_path / str(rows)
        folder.mkdir()
        scale.write_listing(folder / "listing.jsonl", rows)
        items: list[Any] = scale.read_items(folder / "listing.jsonl", "", folder)
        with Workplace(folder / "work", settings, None) as work:
            judge(items, work, OF_RECORDS)
        assert all(item.kept for item in items)
        return items

    LanguageDetector().scores("the model is loaded before anything is counted")
    few, many = held(lambda: judged(500)), held(lambda: judged(1500))
    assert (many[0] - few[0]) / 1000 < 1800
    assert (many[1] - few[1]) / 1000 < 2000  # and what is let go on the way


def test_of_stored_scores_only_their_places_are_held(tmp_path: Path) -> None:
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000)]
    store = ScoreStore(tmp_path, "decode", "1")
    for name in names:
        store.put(name, MEASURED | {"name": name})
    store.close()
    size = (tmp_path / "decode.jsonl").stat().st_size / len(names)
    opened: list[ScoreStore] = []
    now, _ = held(lambda: opened.append(ScoreStore(tmp_path, "decode", "1")))
    found = [opened[0][name]["name"] for name in (names[1234], names[7])]
    opened[0].close()
    assert found == [names[1234], names[7]]
    assert size > 3000
    assert now / len(names) < 350


def test_the_manifest_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xgenvideo.data.shards.GROUP_ROWS", 20)

    def write(count: int) -> str:
        samples = (
            Sample(f"k{number}", (b"\0",), (0.0,), "a caption", f"s{number}", lineage=MEASURED)
            for number in range(count)
        )
        return publish_dataset(tmp_path / str(count), samples, {})

    few, many = held(lambda: write(100)), held(lambda: write(500))
    assert (many[1] - few[1]) / 400 < 500  # a key in the set of those seen; a row of the manifest has over 3,000 bytes


def test_copies_are_found_among_many_in_linear_memory(scale: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xgenvideo.curate.neighbours.CHUNK", 2000)
    found = scale.find_copies(10_000)
    assert min(found["0.02"], found["0.1"]) > 0.99
    signatures = np.random.default_rng(0).integers(0, 2**64, (9000, KINDS * WORDS), np.uint64)
    few, many = (held(lambda n=n: find_neighbours(signatures[:n], np.ones(n)))[1] for n in (3000, 9000))
    assert (many - few) / 6000 < 250


def test_of_a_crowd_of_copies_one_is_kept() -> None:
    rng = np.random.default_rng(0)
    prints = {}
    for scene in range(3):
        thumbs = rng.integers(0, 255, (8, 16, 16, 3)).astype(np.uint8)
        for copy in range(5 * KEPT):
            rank = (-256 if copy == 31 else -100, scene * 100 + copy)
            prints[f"{scene}-{copy}"] = fingerprint(thumbs, np.arange(8) / 2, 4.0, rank)
    found = find_duplicates(prints, CurateSettings())
    assert {name for name in prints if name not in found} == {"0-31", "1-31", "2-31"}
    assert all(kept == f"{name[0]}-31" for name, (kept, _) in found.items())
    backwards = dict(reversed(prints.items()))
    assert find_duplicates(backwards, CurateSettings()) == found
    assert find_duplicates({}, CurateSettings()) == {}
