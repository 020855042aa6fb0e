"""A batch of video-text pairs as tensors, and how samples become one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from xgenvideo.data.text import PackedText
from xgenvideo.errors import DataError

FRAME_MULTIPLE = 8
LARGE_BYTES = 2**16  # a tensor of less is copied sooner than it is shared


@dataclass(frozen=True, repr=False)
class Example:
    """One sample ready to be collated: frames [F 3 S S] uint8 or features [F P W], pts [F] seconds, packed text."""

    key: str
    text: PackedText
    pts: Tensor
    frames: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        video = self.features if self.features is not None else self.frames
        if video is None or len(video) != len(self.pts) or len(self.pts) == 0:
            shape = None if video is None else list(video.shape)
            raise DataError(f"example {self.key}: video is {shape}, there are {len(self.pts)} timestamps")

    @property
    def video(self) -> Tensor:
        """Frames or features, whichever is there."""
        return _present(self.frames if self.features is None else self.features)

    def __repr__(self) -> str:
        return f"Example({self.key}, frames={len(self.pts)}, {self.text})"


@dataclass(frozen=True, repr=False)
class Batch:
    """B pairs. Axes: B pairs, F frames, P patches, W encoder width, T tokens.

    frames [B F 3 H W] uint8 or None; features [B F P W] float or None (one of the two is there); pts [B F] float32
    seconds; frame_mask [B F] bool, False at padding; tokens, targets (-100: not predicted), documents (-1: padding) and
    positions [B T] int64; caption_end [B] int64 index of <|endofcaption|>; sees_video [B T] bool; caption_group [B]
    int64; position: the place of the first sample in the run's global order of samples.
    """

    frames: Tensor | None
    features: Tensor | None
    pts: Tensor
    frame_mask: Tensor
    tokens: Tensor
    targets: Tensor
    documents: Tensor
    positions: Tensor
    caption_end: Tensor
    sees_video: Tensor
    caption_group: Tensor
    keys: tuple[str, ...]
    position: int = 0

    def __post_init__(self) -> None:
        pairs, tokens, shape = len(self.keys), self.tokens.shape, self.pts.shape
        texts = (self.targets, self.documents, self.positions, self.sees_video)
        rows = (self.tokens, self.pts, self.caption_end, self.caption_group)
        video = [part for part in (self.frames, self.features) if part is not None]
        if not video or any(part.shape[:2] != shape for part in (*video, self.frame_mask)):
            raise DataError(f"video and timestamps do not fit: {self}")
        if any(part.shape != tokens for part in texts) or any(len(part) != pairs for part in rows):
            raise DataError(f"{pairs} keys and texts do not fit: {self}")

    def __len__(self) -> int:
        return len(self.keys)

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes each tensor is a file of its own: all but the video go as arrays, inside the message."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        video = {name: values.pop(name) for name in ("frames", "features")}
        return _from_arrays, (
            video,
            {name: part.numpy(force=True) if isinstance(part, Tensor) else part for name, part in values.items()},
        )

    def split(self, pairs: int) -> list["Batch"]:
        """The batch as microbatches of `pairs` pairs (the last one may be shorter), views of the same memory."""
        starts = range(0, len(self), pairs)
        named = self._tensors()
        return [
            replace(
                self,
                **{name: part[start : start + pairs] for name, part in named.items()},
                keys=self.keys[start : start + pairs],
                position=self.position + start,
            )
            for start in starts
        ]

    @property
    def video(self) -> Tensor:
        """Frames or features, whichever is there."""
        return _present(self.frames if self.features is None else self.features)

    def with_video(self, video: Tensor) -> "Batch":
        """The batch with other frames, or other features."""
        return replace(self, frames=video) if self.features is None else replace(self, features=video)

    def present_frames(self) -> Tensor:
        """The frames [B F 3 H W]. Raises DataError for a batch of cached features, which has none."""
        if self.frames is None:
            raise DataError(f"this batch holds cached features, not frames: {self}")
        return self.frames

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with every tensor on `device`."""
        values = {name: part.to(device, non_blocking=True) for name, part in self._tensors().items()}
        return replace(self, **values)  # type: ignore[arg-type]

    def pinned(self) -> "Batch":
        """The batch in page-locked memory, from which `to` copies to a GPU while the host goes on."""
        return replace(self, **{name: part.pin_memory() for name, part in self._tensors().items()})  # type: ignore[arg-type]

    def _tensors(self) -> dict[str, Tensor]:
        named = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return {name: part for name, part in named.items() if isinstance(part, Tensor)}

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}={list(part.shape)}" for name, part in self._tensors().items())
        return f"Batch({shapes}, position={self.position})"


def _from_arrays(video: dict[str, Any], others: dict[str, Any]) -> Batch:
    made: dict[str, Any] = {
        name: torch.from_numpy(part) if isinstance(part, np.ndarray) else part for name, part in others.items()
    }
    return Batch(**video, **made)


def memory(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory for a tensor, unset. In a process of torch's DataLoader that of a large one is shared: it is handed over
    without a copy.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_BYTES or get_worker_info() is None:
        return torch.empty(tuple(shape), dtype=dtype)
    storage = torch.UntypedStorage._new_shared(size)  # as DataLoader's own collating does
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(dtype).view(tuple(shape))


def padded_length(longest: int, max_frames: int) -> int:
    """F of a batch: the longest clip's frames, rounded up to a multiple of 8 but at most `max_frames`."""
    return min(-(-longest // FRAME_MULTIPLE) * FRAME_MULTIPLE, max_frames)


def collate(examples: Sequence[Example], max_frames: int, position: int = 0, room: Tensor | None = None) -> Batch:
    """Examples as a batch whose F is `padded_length`.

    Frames or features that lie in `room` [B F ...] already, each example's in its row, are not copied.
    Short clips are padded with zeros under a False frame mask, never by repeating. Raises DataError for a clip of more
    than `max_frames` frames, or for none.
    """
    longest = max((len(example.pts) for example in examples), default=0)
    if not 1 <= longest <= max_frames:
        raise DataError(
            f"a batch of {len(examples)} clips, the longest of {longest} frames; 1 to {max_frames} can be collated"
        )
    count = padded_length(longest, max_frames)
    texts = [example.text for example in examples]
    return Batch(
        frames=_padded([example.frames for example in examples], count, room),
        features=_padded([example.features for example in examples], count, room),
        pts=_present(_padded([example.pts.float() for example in examples], count)),
        frame_mask=torch.stack([torch.arange(count) < len(example.pts) for example in examples]),
        tokens=torch.stack([torch.from_numpy(text.tokens) for text in texts]),
        targets=torch.stack([torch.from_numpy(text.targets) for text in texts]),
        documents=torch.stack([torch.from_numpy(text.documents) for text in texts]),
        positions=torch.stack([torch.from_numpy(text.positions) for text in texts]),
        caption_end=torch.tensor([text.caption_end for text in texts]),
        sees_video=torch.stack([torch.from_numpy(text.sees_video) for text in texts]),
        caption_group=torch.tensor([text.caption_group for text in texts]),
        keys=tuple(example.key for example in examples),
        position=position,
    )


def _padded(parts: Sequence[Tensor | None], count: int, room: Tensor | None = None) -> Tensor | None:
    """Parts [F ...] as one tensor [B count ...] with zeros after each; None if no example has this part."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    fits = room is not None and room.shape[:2] == (len(present), count)
    result = (
        room if room is not None and fits else memory((len(present), count, *present[0].shape[1:]), present[0].dtype)
    )
    for row, part in zip(result, present, strict=True):
        if row.data_ptr() != part.data_ptr():
            row[: len(part)] = part
        row[len(part) :] = 0
    return result


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "every example has a video and timestamps"
    return tensor
