"""What curation holds in memory for each input, counted at a small scale: a million rows are to fit in 2 GB."""

import hashlib
import importlib.util
import random
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.curate.conftest import duplicates_among
from xgenvideo.curate.across import judge_templates
from xgenvideo.curate.duplicates import fingerprint
from xgenvideo.curate.neighbours import KEPT, KINDS, WORDS, find_neighbours
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.sources import read_inputs
from xgenvideo.curate.stages import Workplace
from xgenvideo.curate.store import Index, ScoreStore, index_path
from xgenvideo.curate.tally import Tally
from xgenvideo.data.shards import publish_dataset
from xgenvideo.data.tokenizer import Tokenizer, train_tokenizer
from xgenvideo.errors import DataError
from xgenvideo.records import Sample

BENCH = Path(__file__).parent.parent.parent / "bench" / "curation_scale.py"
MEASURED = {"motion": {f"score {number}": number / 7 for number in range(150)}}  # as large as what decoding measures


@pytest.fixture(scope="module")
def scale() -> ModuleType:
    specification = importlib.util.spec_from_file_location("bench_curation_scale", BENCH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(BENCH.parent))  # what the benches share
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


@pytest.mark.parametrize("preset", ["", "internvid-flt"])
def test_a_row_of_a_listing_takes_under_a_hundred_bytes(
    scale: ModuleType, tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "intern", str)  # pathlib's; Python's table of such names grows by megabytes at a time
    settings = CurateSettings(steps=("language", "captions"), unit_pairs=200, preset=preset)

    def curated(rows: int) -> Tally:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        scale.write_listing(folder / "listing.jsonl", rows)
        inputs, _ = read_inputs(folder / "listing.jsonl", None, settings, folder / "work")
        with Workplace(folder / "work", settings, None) as work:
            scale.prepare(inputs, work)
            judge_templates(inputs, work)
        tally = Tally.of(inputs)
        scale.write_audit(folder / "audit.jsonl", inputs)
        assert tally.kept == rows * (0.3 if preset else 1)
        return tally

    curated(200)  # models are loaded before anything is counted
    few, many = held(lambda: curated(1000))[1], held(lambda: curated(2000))[1]
    assert (many - few) / 1000 < 100  # a record alone has over a thousand


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
    assert now / len(names) < 20


def test_an_index_of_scores_is_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xgenvideo.curate.store.MOST_FRESH", 7)
    names = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(50)]
    expected = {}
    for run in range(3):  # of several runs, the second killed in the middle of a line, the newest word counts
        store = ScoreStore(tmp_path, "decode", "1")
        assert {name: store[name] for name in names if name in store} == expected
        for number, name in enumerate(names[: 20 + 15 * run]):
            if number % (run + 1) == 0:
                store.forget(name)
                assert name not in store
                store.put(name, {"run": run})
                expected[name] = {"run": run}
        if run != 1:
            store.close()
        else:
            kill(store)
            with (tmp_path / "decode.jsonl").open("ab") as file:
                file.write(b'{"id": "')
    other = ScoreStore(tmp_path, "decode", "2")
    assert names[0] not in other
    other.put(names[0], {"run": 9})
    other.close()
    part = ScoreStore(tmp_path, "decode", "1", "-0-of-2")
    part.put(names[0], {"run": 10})
    assert part[names[0]] == {"run": 10}  # its own word counts
    del expected[names[0]]
    assert {name: part[name] for name in names[1:] if name in part} == expected
    part.close()
    lines = (tmp_path / "decode.jsonl").read_bytes().splitlines(keepends=True)
    ScoreStore(tmp_path, "decode", "1").close()
    (tmp_path / "decode.jsonl").write_bytes(b"".join(reversed(lines)))
    store = ScoreStore(tmp_path, "decode", "1")
    with pytest.raises(DataError, match=r"remove .*decode.index and run again"):
        store[names[18]]
    store.close()


def kill(store: ScoreStore) -> None:
    """As a process that ends at once: its index stays behind its scores."""
    store._files[0]._writing.close()  # type: ignore[union-attr]
    store._reading[1].close()


def named(*numbers: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def test_a_process_and_its_child_write_to_one_file_in_turn(tmp_path: Path) -> None:
    names = named(*range(4))
    parent = ScoreStore(tmp_path, "download", "1")
    parent.put(names[0], {"by": "parent"})
    child = ScoreStore(tmp_path, "download", "1")
    child.put(names[1], {"by": "child"})
    child.close()
    with (tmp_path / "download.jsonl").open("ab") as file:
        file.write(b'{"id": "')  # another child was killed
    parent.put(names[2], {"by": "parent"})
    assert parent[names[2]] == {"by": "parent"}
    assert parent[names[1]] == {"by": "child"}
    parent.close()
    again = ScoreStore(tmp_path, "download", "1")
    assert [name in again for name in names] == [True, True, True, False]
    assert not again._files[0]._fresh, "the index has all of it"
    again.close()


@pytest.mark.parametrize("left", [0, 5])
def test_an_index_of_more_than_there_is_is_not_believed_when_the_file_has_grown(tmp_path: Path, left: int) -> None:
    path = tmp_path / "decode.jsonl"
    store = ScoreStore(tmp_path, "decode", "1")
    for name in named(*range(10)):
        store.put(name, {"run": 1})
    store.close()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:left]))  # the machine lost its power
    store = ScoreStore(tmp_path, "decode", "1")
    for name in named(*range(100, 112)):
        store.put(name, {"another length": True})
    kill(store)
    store = ScoreStore(tmp_path, "decode", "1")
    assert [name in store for name in named(*range(10))] == [number < left for number in range(10)]
    assert all(store[name] == {"another length": True} for name in named(*range(100, 112)))
    store.close()


def test_another_parts_file_without_an_index_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xgenvideo.curate.store.MOST_FRESH", 20)
    part = ScoreStore(tmp_path, "decode", "1", "-0-of-2")
    for name in named(*range(50)):
        part.put(name, {"by": "part"})
    part.close()
    index_path(tmp_path / "decode-0-of-2.jsonl").unlink()  # as a takedown leaves it
    store = ScoreStore(tmp_path, "decode", "1")
    assert max(len(file._fresh) for file in store._files) < 20
    assert all(store[name] == {"by": "part"} for name in named(*range(50)))
    store.close()


def test_an_index_is_merged_in_little_memory(tmp_path: Path) -> None:
    (tmp_path / "decode.jsonl").touch()
    rng = np.random.default_rng(0)

    def keys(count: int) -> list[tuple[int, int]]:
        return list(map(tuple, rng.integers(0, 2**64, (count, 2), np.uint64).tolist()))

    many, few = keys(20_000), keys(20)
    index = Index.of(tmp_path / "decode.jsonl", "1").merged(dict.fromkeys(many, 1), 0)
    assert held(lambda: index.merged(dict.fromkeys(few, 2), 0))[1] / 20_000 < 40  # all columns at once take 100
    merged = index.merged(dict.fromkeys([*few, *many[:7], (many[7][0], 0), (many[8][0], 2**64 - 1)], 2), 0)
    assert [merged.find(key) for key in (*few, *many[:9])] == [2] * 27 + [1, 1]
    assert (merged.find((many[7][0], 0)), merged.find((many[8][0], 2**64 - 1))) == (2, 2)
    assert merged.find((many[7][0], 5)) is None


def test_a_damaged_line_is_told_with_its_place(tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, "decode", "1")
    store.put(named(1)[0], {"run": 1})
    kill(store)
    size = (tmp_path / "decode.jsonl").stat().st_size
    with (tmp_path / "decode.jsonl").open("ab") as file:
        file.write(bytes(9) + b"\n")
    with pytest.raises(DataError, match=rf"line at byte {size} is damaged .* \(truncate -s {size}\) and run again"):
        ScoreStore(tmp_path, "decode", "1")


def test_captions_are_not_held_while_a_tokenizer_learns(scale: ModuleType) -> None:
    rng = random.Random(0)
    captions = [scale.write_caption(number, rng) for number in range(3000)]

    def learn(count: int) -> Tokenizer:
        return train_tokenizer((caption + "!" for caption in captions[:count]), 400)

    few, many = held(lambda: learn(1000))[1], held(lambda: learn(3000))[1]
    assert (many - few) / 2000 < 30  # a caption has over a hundred


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
    found = duplicates_among(prints)
    assert {name for name in prints if name not in found} == {"0-31", "1-31", "2-31"}
    assert all(kept == f"{name[0]}-31" for name, (kept, _) in found.items())
    backwards = dict(reversed(prints.items()))
    assert duplicates_among(backwards) == found
    assert duplicates_among({}) == {}
