"""The index of a manifest: the same rows from mapped files, made again where there is none, never a stale one."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from xgenvideo.data.dataset import Dataset, open_dataset
from xgenvideo.data.shards import write_dataset
from xgenvideo.errors import DataError
from xgenvideo.records import Sample


def index_of(dataset: Dataset) -> Path:
    """The folder of a dataset's index."""
    (found,) = dataset.folder.glob("index-*")
    return found


def test_an_index_that_is_missing_is_made_again_to_the_byte(tiny_dataset: Dataset) -> None:
    folder = index_of(tiny_dataset)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rows = [tiny_dataset.row(number) for number in range(len(tiny_dataset))]
    shutil.rmtree(folder)
    again = open_dataset(tiny_dataset.folder)
    assert {path.name: path.read_bytes() for path in index_of(again).iterdir()} == before
    assert [again.row(number) for number in range(len(again))] == rows
    assert not list(again.folder.glob("*.tmp-*"))


def test_places_are_those_of_the_samples(tmp_path: Path) -> None:
    def sample(key: str, split: str, source: str, frames: int, **lineage: float | None) -> Sample:
        return Sample(key, (b"x",) * frames, (0.0,) * frames, "caption", source, split=split, lineage=lineage)

    samples = [
        sample("a", "train", "film", 2, start=0, end=1.5),
        sample("b", "heldout", "other", 3),
        sample("c", "train", "other", 1, start=4.25, end=None),
        sample("d", "train", "film", 4),
    ]
    dataset = write_dataset(tmp_path / "set", samples, {})
    places = dataset.places("train")
    assert places["number"].tolist() == [0, 2, 3]
    assert places["frames"].tolist() == [2, 1, 4]
    assert places["source"][0] == places["source"][2] != places["source"][1]
    assert np.array_equal(places["start"], [0, 4.25, np.nan], equal_nan=True)
    assert np.array_equal(places["end"], [1.5, np.nan, np.nan], equal_nan=True)
    assert len(dataset.places("absent")) == 0
    assert [dataset.find(key).key for key in "dacb"] == list("dacb")


def test_a_key_is_not_found_inside_a_text(tmp_path: Path) -> None:
    liar = Sample("first", (b"x",), (0.0,), '{"key": "second", "split"', "s")
    dataset = write_dataset(tmp_path / "set", [liar, Sample("second", (b"x",), (0.0,), "it", "s")], {})
    assert dataset.find("second").caption == "it"
    with pytest.raises(DataError, match="no sample has the key 'secon'"):
        dataset.find("secon")


@pytest.mark.parametrize("name", ["rows.jsonl", "offsets.bin", "train.bin"])
def test_an_index_that_was_cut_is_refused(tiny_dataset: Dataset, name: str) -> None:
    file = index_of(tiny_dataset) / name
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"does not hold the rows of the manifest.*remove this folder"):
        open_dataset(tiny_dataset.folder)


def test_another_process_opens_the_same_rows_without_the_manifest(tiny_dataset: Dataset) -> None:
    packed = pickle.dumps(tiny_dataset)
    assert len(packed) < 1000
    (tiny_dataset.folder / "manifest.parquet").unlink()
    again = pickle.loads(packed)
    assert [row.key for row in again.rows("train")] == tiny_dataset.keys("train")
    text = (tiny_dataset.folder / "dataset.json").read_text()
    other = write_dataset(tiny_dataset.folder.with_name("other"), [tiny_dataset.read("clip0-a")], {})
    shutil.copy(other.folder / "dataset.json", tiny_dataset.folder)
    with pytest.raises(DataError, match="is another dataset now"):
        pickle.loads(packed)
    (tiny_dataset.folder / "dataset.json").write_text(text)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tiny_dataset: Dataset) -> None:
    shutil.rmtree(index_of(tiny_dataset))
    tiny_dataset.folder.chmod(0o555)
    try:
        with pytest.raises(DataError, match="open the dataset once where its folder can be written"):
            open_dataset(tiny_dataset.folder)
    finally:
        tiny_dataset.folder.chmod(0o755)
