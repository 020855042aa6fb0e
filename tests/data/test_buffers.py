"""Memory that batches share one after the other: never while anything still looks at it."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from xgenvideo.config import RunConfig, override
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.buffers import make_buffers
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.loader import KEPT_BATCHES, Loader
from xgenvideo.data.making import BatchMaker
from xgenvideo.data.shards import write_dataset
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.data.workers import Batches, Workers
from xgenvideo.errors import DataError
from xgenvideo.records import Sample

SETTINGS = ["layout.microbatch_pairs=1", "train.global_batch_pairs=4", "data.text_tokens=48"]


@pytest.fixture
def tokenizer(tiny_dataset: Dataset) -> Tokenizer:
    return tokenizers.load(tiny_dataset.folder / "tokenizer.json")


def test_a_piece_is_lent_again_only_when_no_view_of_it_is_left() -> None:
    buffers = make_buffers(1, 5000)
    whole = buffers.take()
    assert whole is not None
    view, array = whole[:6].view(2, 3)[1], whole[10:20].numpy()
    del whole
    assert buffers.take() is None
    del view
    assert buffers.take() is None, "an array still looks at it"
    array[:] = 7
    del array
    again = buffers.take()
    assert again is not None
    assert again[10] == 7, "other memory was lent"
    del buffers
    again.fill_(1)  # a batch outlives its loader
    assert len(again) >= 5000


def test_pieces_do_not_touch_and_take_no_memory_before_they_are_written() -> None:
    buffers = make_buffers(3, 2**26 + 1)
    assert os.fstat(buffers._file).st_blocks == 0
    buffers.close_file()
    pieces = [buffers.take() for _ in range(3)]
    assert buffers.lend() is None
    for number, piece in enumerate(pieces):
        assert piece is not None
        piece[[0, -1]] = number + 1
    assert [piece[[0, -1]].tolist() for piece in pieces if piece is not None] == [[1, 1], [2, 2], [3, 3]]
    assert make_buffers(4, 0).take() is None, "a loader with processes has none of its own"


def means(frames: Tensor) -> Tensor:
    """Features [N 2 3] of frames [N 3 S S]: mean colours of two halves."""
    return frames.float().unflatten(2, (2, -1)).mean(dim=(3, 4)).transpose(1, 2)


@pytest.mark.parametrize("kind", ["frames", "bf16", "int8"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_kept_stay_as_they_were(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig, tmp_path: Path, workers: int, kind: str
) -> None:
    config = override(small_config, [*SETTINGS, f"data.workers={workers}"])
    size = config.model.vision.image_size
    cache = None if kind == "frames" else FeatureCache(tmp_path, "means", size, kind).build(tiny_dataset, means)
    maker = BatchMaker(tiny_dataset, tokenizer, config, 0, 1, cache)
    loader = Loader(tiny_dataset, tokenizer, config, cache=cache)
    kept = [loader.next_batch() for _ in range(3 * KEPT_BATCHES)]
    loader.close()
    for batch in kept:
        assert torch.equal(batch.video, maker.make(batch.position).batch.video)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_let_go_come_from_few_places(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig, workers: int
) -> None:
    loader = Loader(tiny_dataset, tokenizer, override(small_config, [*SETTINGS, f"data.workers={workers}"]))
    places = {loader.next_batch().present_frames().data_ptr() for _ in range(40)}
    loader.close()
    assert len(places) <= KEPT_BATCHES + 2 * workers


def test_frames_that_a_buffer_cannot_hold_come_all_the_same(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    maker = BatchMaker(tiny_dataset, tokenizer, override(small_config, SETTINGS), 0, 1, None)
    expected = maker.make(0).batch.present_frames()
    enough, small = make_buffers(1, maker.largest_bytes), make_buffers(1, 1)
    inside, _ = Batches(maker, enough)[0, enough.lend()]
    outside, _ = Batches(maker, small)[0, small.lend()]
    assert not isinstance(inside, str)
    assert not isinstance(outside, str)
    assert inside.batch.present_frames().is_meta
    assert torch.equal(enough.tensor(0)[: expected.numel()].view(expected.shape), expected)
    assert torch.equal(outside.batch.present_frames(), expected)


def test_after_bad_data_the_batch_that_failed_is_made_and_not_the_next_one(
    tmp_path: Path, tiny_samples: list[Sample], tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    dataset = write_dataset(tmp_path / "set", tiny_samples, {})
    maker = BatchMaker(dataset, tokenizer, override(small_config, [*SETTINGS, "data.workers=2"]), 0, 1, None)
    shards = {path: path.read_bytes() for path in dataset.folder.glob("train-*.tar")}
    for path, content in shards.items():
        path.write_bytes(content[:-1] + b"x")
    workers = Workers(maker, KEPT_BATCHES)
    with pytest.raises(DataError, match="the shard is corrupt"):
        workers.make(0)
    for path, content in shards.items():
        path.write_bytes(content)
    found, expected = workers.make(0).batch, maker.make(0).batch
    workers.close()
    assert found.keys == expected.keys
    assert torch.equal(found.present_frames(), expected.present_frames())
