"""Frames and batches: real pictures, padding that is marked and never repeated, shapes that are checked."""

import dataclasses
import pickle

import cv2
import numpy as np
import pytest
import torch

from xgenvideo.data.batch import Batch, Example, collate, memory
from xgenvideo.data.frames import decode_frames, fit_square
from xgenvideo.data.text import pack, texts
from xgenvideo.data.tokenizer import train_tokenizer
from xgenvideo.errors import DataError, MediaError
from xgenvideo.records import Sample


@pytest.fixture(scope="module")
def examples(tiny_samples: list[Sample]) -> list[Example]:
    """Clips of 6, 6, 9 and 9 frames as 32-pixel pictures."""
    tokenizer = train_tokenizer(texts(tiny_samples), 300)
    return [
        Example(s.key, pack(s, tokenizer, 64), torch.tensor(s.pts, dtype=torch.float64), decode_frames(s, 32))
        for s in tiny_samples[:4]
    ]


def test_frames_are_rgb_in_order(tiny_samples: list[Sample]) -> None:
    frames = decode_frames(tiny_samples[0], 64)
    assert frames.shape == (6, 3, 64, 64)
    assert frames.dtype == torch.uint8
    red = (frames[:, 0].int() - frames[:, 2].int()) > 100
    columns = [row.nonzero()[:, 1].float().mean().item() for row in red if row.any()]
    assert len(columns) > 3
    assert columns == sorted(columns), "the square does not move right, or is not red"
    assert torch.equal(decode_frames(tiny_samples[0], 64, [4, 2]), frames[[4, 2]])


def test_fit_square_keeps_the_centre_and_averages() -> None:
    picture = np.zeros((64, 128, 3), dtype=np.uint8)
    picture[:, 32:96] = 200
    assert (fit_square(picture, 32) == 200).all()
    assert (fit_square(picture.transpose(1, 0, 2), 32) == 200).all()
    assert fit_square(picture[:7, :9], 32).shape == (32, 32, 3)
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    assert (fit_square(stripes, 16) == 100).all(), "stripes finer than the result must average, not alias"
    for height, width in ((64, 65), (65, 64), (37, 1000), (1, 1)):
        assert fit_square(np.zeros((height, width, 3), dtype=np.uint8), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("jpeg", [b"", b"not a picture", b"\xff\xd8\xff\xe0"])
def test_a_frame_that_is_no_picture_is_named(tiny_samples: list[Sample], jpeg: bytes) -> None:
    bad = dataclasses.replace(tiny_samples[0], jpegs=(*tiny_samples[0].jpegs[:-1], jpeg))
    with pytest.raises(MediaError, match=r"clip0-a: undecodable_frame \(frame 5") as caught:
        decode_frames(bad, 32)
    assert caught.value.reason == "undecodable_frame"


def test_an_orientation_tag_turns_nothing(tiny_samples: list[Sample]) -> None:
    jpeg = tiny_samples[0].jpegs[0]
    body = (
        b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
    )
    tagged = jpeg[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + jpeg[2:]
    turned = cv2.imdecode(np.frombuffer(tagged, np.uint8), cv2.IMREAD_COLOR)
    assert turned is not None
    assert turned.shape[:2] == (96, 64), "the tag is not there to be ignored"
    both = dataclasses.replace(tiny_samples[0], jpegs=(jpeg, tagged), pts=(0.0, 0.5))
    frames = decode_frames(both, 32)
    assert torch.equal(frames[0], frames[1])


def test_collate_pads_with_a_mask(examples: list[Example]) -> None:
    batch = collate(examples, max_frames=64, position=12)
    assert batch.frames is not None
    assert batch.frames.shape == (4, 16, 3, 32, 32)
    assert batch.features is None
    assert batch.frame_mask.sum(dim=1).tolist() == [6, 6, 9, 9]
    assert batch.frame_mask[0].tolist() == [True] * 6 + [False] * 10
    assert not batch.frames[~batch.frame_mask].any()
    assert batch.pts.dtype == torch.float32
    assert batch.pts[0, :7].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 0.0]
    assert batch.keys == ("clip0-a", "clip0-b", "clip1-a", "clip1-b")
    assert torch.equal(batch.tokens[2], torch.from_numpy(examples[2].text.tokens))
    assert len(set(batch.caption_group.tolist())) == 4
    for name in ("tokens", "targets", "documents", "positions", "caption_end", "caption_group"):
        assert getattr(batch, name).dtype == torch.int64, name
    assert batch.position == 12
    assert repr(batch).startswith("Batch(frames=[4, 16, 3, 32, 32], pts=[4, 16]")


@pytest.mark.parametrize(("limit", "frames"), [(64, 16), (16, 16), (12, 12), (9, 9)])
def test_the_frame_axis_is_a_multiple_of_eight_or_the_limit(examples: list[Example], limit: int, frames: int) -> None:
    assert collate(examples, limit).pts.shape == (4, frames)


def test_what_cannot_be_collated_is_refused(examples: list[Example]) -> None:
    with pytest.raises(DataError, match="the longest of 9 frames"):
        collate(examples, 8)
    with pytest.raises(DataError, match="0 clips"):
        collate([], 8)
    with pytest.raises(DataError, match="video is None"):
        dataclasses.replace(examples[0], frames=None)
    with pytest.raises(DataError, match="there are 3 timestamps"):
        dataclasses.replace(examples[0], pts=examples[0].pts[:3])


def test_a_batch_checks_itself_at_birth(examples: list[Example]) -> None:
    batch = collate(examples, 64)
    changes: list[dict[str, object]] = [
        {"frames": None},
        {"pts": batch.pts[:, :3]},
        {"frame_mask": batch.frame_mask[:2]},
        {"targets": batch.targets[:, 1:]},
        {"caption_end": batch.caption_end[:1]},
        {"keys": batch.keys[:3]},
    ]
    for change in changes:
        with pytest.raises(DataError, match="do not fit"):
            dataclasses.replace(batch, **change)  # type: ignore[arg-type]


def test_microbatches_are_the_batch_in_parts(examples: list[Example]) -> None:
    batch = collate(examples, 64, position=8)
    parts = batch.split(3)
    assert [len(part) for part in parts] == [3, 1]
    assert [part.position for part in parts] == [8, 11]
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert sum((part.keys for part in parts), ()) == batch.keys


class Features(torch.utils.data.Dataset[Batch]):
    """Batches with features in bf16, the type that NumPy lacks, made by the process that is asked for one."""

    def __init__(self, batch: Batch, pairs: int) -> None:
        self.batch, self.pairs = batch, pairs

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Batch:
        features = memory((*self.batch.pts.shape, 4, self.pairs), torch.bfloat16)
        features.copy_(torch.arange(features.numel()).reshape(features.shape) % 251 + index)
        return dataclasses.replace(self.batch, frames=None, features=features)


@pytest.mark.parametrize("width", [1, 4096])
def test_a_batch_crosses_to_another_process_whole(examples: list[Example], width: int) -> None:
    made = Features(collate(examples, 16), width)
    received = list(torch.utils.data.DataLoader(made, batch_size=None, num_workers=2))
    for index, batch in enumerate([*received, pickle.loads(pickle.dumps(made[1]))]):
        expected = made[min(index, 1)]
        assert batch.keys == expected.keys
        assert batch.position == expected.position
        assert batch.frames is None
        for name in ("features", "pts", "frame_mask", "tokens", "targets", "documents", "caption_end", "sees_video"):
            found, given = getattr(batch, name), getattr(expected, name)
            assert found.dtype == given.dtype
            assert torch.equal(found, given), name
        # The worker's process has ended: what it gave is still here, and may be written.
        batch.features.zero_()
        # The video is shared memory, the rest comes inside the message: one open file a batch.
        assert batch.features.is_shared() == (index < 2)
        assert not batch.tokens.is_shared()


def test_to_moves_every_tensor(examples: list[Example]) -> None:
    moved: Batch = collate(examples, 64).to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 10
    assert {tensor.device.type for tensor in tensors} == {"meta"}
