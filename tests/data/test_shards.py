"""Datasets on disk: what is written is what is read, damage is named, nothing is overwritten."""

import dataclasses
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgenvideo.data.dataset import Dataset, open_dataset, sample_from, sample_values
from xgenvideo.data.shards import write_dataset
from xgenvideo.errors import DataError
from xgenvideo.records import Sample


def test_what_is_written_is_what_is_read(tiny_dataset: Dataset, tiny_samples: list[Sample]) -> None:
    opened = open_dataset(tiny_dataset.folder)
    assert opened.fingerprint == tiny_dataset.fingerprint
    assert opened.counts == {"train": 8, "heldout": 2}
    assert opened.card == {"title": "Moving squares"}
    for sample in tiny_samples:
        assert opened.read(sample.key) == sample
    assert opened.keys("train") == [sample.key for sample in tiny_samples if sample.split == "train"]
    assert opened.keys("nothing") == []
    for row, sample in zip(opened.rows("train"), tiny_samples, strict=False):
        assert (row.key, row.caption, row.questions, row.twin) == (
            sample.key,
            sample.caption,
            sample.questions,
            sample.twin,
        )
        assert (row.pts, row.frames, row.seconds) == (sample.pts, len(sample.jpegs), sample.pts[-1] - sample.pts[0])
        assert opened.read_row(row).lineage == sample.lineage
    with pytest.raises(DataError, match="no sample has the key 'absent'"):
        opened.read("absent")


def test_shards_are_plain_webdataset_tars(tiny_dataset: Dataset, tiny_samples: list[Sample]) -> None:
    shards = sorted(tiny_dataset.folder.glob("*.tar"))
    assert len(shards) > 2
    assert shards[0].name == "heldout-00000.tar"
    with tarfile.open(shards[0]) as tar:
        names = tar.getnames()
        content = tar.extractfile("clip4-a.000.jpg")
        assert content is not None
        assert content.read() == next(s for s in tiny_samples if s.key == "clip4-a").jpegs[0]
    assert names[:3] == ["clip4-a.json", "clip4-a.000.jpg", "clip4-a.001.jpg"]


def test_the_same_samples_give_the_same_bytes(tmp_path: Path, tiny_samples: list[Sample]) -> None:
    first, second = (write_dataset(tmp_path / name, tiny_samples, {}) for name in ("one", "two"))
    names = sorted(str(path.relative_to(first.folder)) for path in first.folder.rglob("*") if path.is_file())
    index = [name for name in names if name.startswith("index-")]
    assert [Path(name).name for name in index] == ["heldout.bin", "offsets.bin", "rows.jsonl", "train.bin"]
    assert set(names) - set(index) == {"dataset.json", "heldout-00000.tar", "manifest.parquet", "train-00000.tar"}
    for name in names:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_a_dataset_is_never_overwritten(tmp_path: Path, tiny_samples: list[Sample]) -> None:
    folder = tmp_path / "set"
    dataset = write_dataset(folder, tiny_samples, {})
    (folder / "tokenizer.json").write_text("kept")
    assert write_dataset(folder, tiny_samples, {}).fingerprint == dataset.fingerprint
    assert (folder / "tokenizer.json").read_text() == "kept"
    with pytest.raises(DataError, match="never overwritten"):
        write_dataset(folder, tiny_samples[:2], {})
    assert open_dataset(folder).fingerprint == dataset.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="is not a dataset"):
        write_dataset(tmp_path / "mine", tiny_samples, {})
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_a_write_that_dies_publishes_nothing(tmp_path: Path, tiny_samples: list[Sample]) -> None:
    def dying() -> object:
        yield tiny_samples[0]
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        write_dataset(tmp_path / "set", dying(), {})  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match=r"no dataset\.json"):
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize("key", ["../up", "a/b", "a.b", "", "..", "x" * 81, "späte", "a\nb", "a\n"])
def test_unsafe_keys_are_refused(tmp_path: Path, tiny_samples: list[Sample], key: str) -> None:
    with pytest.raises(DataError, match="a key is 1 to 80"):
        write_dataset(tmp_path / "set", [dataclasses.replace(tiny_samples[0], key=key)], {})


def test_other_bad_samples_are_refused(tmp_path: Path, tiny_samples: list[Sample]) -> None:
    first = tiny_samples[0]
    cases = {
        "two samples have it": [first, dataclasses.replace(first, split="heldout")],
        "split '../x'": [dataclasses.replace(first, split="../x")],
        "without NaN": [dataclasses.replace(first, lineage={"score": float("nan")})],
        "in UTF-8": [dataclasses.replace(first, caption="half \ud800 pair")],
        "no sample to write": [],
    }
    for message, samples in cases.items():
        with pytest.raises(DataError, match=message):
            write_dataset(tmp_path / "set", samples, {})
    assert list(tmp_path.iterdir()) == []


def flip(path: Path, at: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_named_and_the_rest_is_read(tiny_dataset: Dataset) -> None:
    flip(tiny_dataset.folder / "train-00000.tar", 5000)
    opened = open_dataset(tiny_dataset.folder)
    with pytest.raises(DataError, match=r"train-00000\.tar: the shard is corrupt .* Copy this shard again"):
        opened.read(opened.keys("train")[0])
    assert opened.read("clip4-a").key == "clip4-a"
    with pytest.raises(DataError, match=r"train-00000\.tar"):
        opened.verify()


def test_a_missing_shard_is_named(tiny_dataset: Dataset) -> None:
    (tiny_dataset.folder / "heldout-00000.tar").unlink()
    with pytest.raises(DataError, match=r"heldout-00000\.tar.*no such file"):
        open_dataset(tiny_dataset.folder).read("clip4-a")


def test_a_shard_is_hashed_once(tiny_dataset: Dataset) -> None:
    tiny_dataset.read("clip4-a")
    flip(tiny_dataset.folder / "heldout-00000.tar", -1)
    tiny_dataset.read("clip4-b")


def test_a_changed_manifest_or_description_is_refused(tiny_dataset: Dataset) -> None:
    manifest = tiny_dataset.folder / "manifest.parquet"
    flip(manifest, 100)
    with pytest.raises(DataError, match=r"manifest\.parquet: SHA-256"):
        open_dataset(tiny_dataset.folder)
    flip(manifest, 100)
    path = tiny_dataset.folder / "dataset.json"
    good = json.loads(path.read_text())
    shard = good["shards"]["heldout-00000.tar"]
    for message, change in {
        "version is 99": {"version": 99},
        "was edited": {"shards": good["shards"] | {"heldout-00000.tar": shard | {"sha256": "0" * 64}}},
        "is not a shard name": {"shards": {"../../secret.tar": shard}},
    }.items():
        path.write_text(json.dumps(good | change))
        with pytest.raises(DataError, match=message):
            open_dataset(tiny_dataset.folder)
    for text, message in (
        ("{", "cannot be read as JSON"),
        ("[]", "version is None"),
        ('{"version": 1}', "has no card"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            open_dataset(tiny_dataset.folder)


def test_no_file_is_readable_by_its_writer_alone(tiny_dataset: Dataset) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert tiny_dataset.folder.stat().st_mode & 0o777 == 0o777 & ~mask


captions = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(captions, st.integers(1, 5), st.none() | st.text("ab-_", min_size=1, max_size=5))
def test_any_caption_survives_its_json(caption: str, frames: int, twin: str | None) -> None:
    sample = Sample("k", (b"x",) * frames, tuple(i / 3 for i in range(frames)), caption, "s", twin=twin)
    assert sample_from(json.loads(json.dumps(sample_values(sample))), sample.jpegs) == sample


def test_more_than_a_thousand_frames_keep_their_order(tmp_path: Path) -> None:
    jpegs = tuple(str(number).encode() for number in range(1005))
    sample = Sample("long", jpegs, tuple(map(float, range(1005))), "Long", "s")
    assert write_dataset(tmp_path / "set", [sample], {}).read("long").jpegs == jpegs
