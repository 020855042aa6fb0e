"""The frozen encoder's features of every frame, made once: the encoder never changes, so neither do they.

A cache is a folder named by the encoder's weights, the dataset, the image size, how pictures are made of frames and the
type of its numbers, so that a stale one is never found.
"""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.data.dataset import Dataset
from xgenvideo.data.frames import PREPARED, decode_frames
from xgenvideo.data.index import publish_once, sync
from xgenvideo.errors import DataError, MediaError

VERSION = 2
ENCODE_FRAMES = 256

FEATURES, SCALES = "features.bin", "scales.bin"
# The files of a cache and the type of their numbers.
PARTS = {"bf16": ((FEATURES, "<i2"),), "int8": ((FEATURES, "|i1"), (SCALES, "<f4"))}

Encode = Callable[[Tensor], Tensor]


class FeatureCache:
    """Features of one encoder at one image size, below `folder`. `build` fills it or finds it filled; then `read`.

    `kind`: "bf16", or "int8" for half the bytes, where each patch's feature has a scale of its own.
    """

    def __init__(self, folder: Path, encoder_hash: str, image_size: int, kind: str = "bf16") -> None:
        assert kind in PARTS, f"features are kept as {' or '.join(PARTS)}, not {kind}"
        self.folder, self.encoder_hash, self.image_size, self.kind = Path(folder), encoder_hash, image_size, kind
        self.fingerprint = ""
        self._index: dict[str, Any] = {}
        self._parts: tuple[NDArray[Any], ...] = ()

    def __repr__(self) -> str:
        samples = len(self._index.get("samples", ()))
        return f"FeatureCache({self.folder}, samples={samples}, features={self._index.get('shape', [])} {self.kind})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, self.encoder_hash, self.image_size, self.kind, self.fingerprint)

    def path(self, fingerprint: str) -> Path:
        """The folder of this encoder's features of the dataset with this fingerprint."""
        hashes = f"{self.encoder_hash[:16]}-{fingerprint[:16]}"
        return self.folder / f"features-{hashes}-{self.image_size}-{PREPARED}-{self.kind}"

    def build(self, dataset: Dataset, encode: Encode, encode_frames: int = ENCODE_FRAMES) -> "FeatureCache":
        """Encode every frame of every split, unless that was done before; returns this cache, open for `read`.

        `encode` takes frames [N 3 S S] uint8 with N at most `encode_frames` and gives features [N P W].
        A sample with an undecodable frame is remembered, and `read` refuses it.
        """
        path = self.path(dataset.fingerprint)
        if not (path / "index.json").is_file():
            temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
            temporary.mkdir(parents=True)
            try:
                self._write(temporary, dataset, encode, encode_frames)
                publish_once(temporary, path, "index.json")
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self._open(path, dataset.fingerprint)
        return self

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """P W of a frame's features."""
        return tuple(self._index["shape"][1:])

    def read(self, key: str, first: int = 0, count: int | None = None, room: Tensor | None = None) -> Tensor:
        """Features [F P W] float32 of a sample: `count` frames (default all) from frame `first` on.

        They are the first rows of `room` [R P W] float32, where that has enough. Raises MediaError for a sample whose
        frames cannot be decoded, DataError for an unknown key or an unbuilt cache.
        """
        if key in self._index.get("bad", {}):
            raise MediaError(self._index["bad"][key], key, "found when the features were made")
        if key not in self._index.get("samples", {}):
            raise DataError(f"{self!r}: has no features of {key!r}; call build(dataset, encode) first")
        start, frames = self._index["samples"][key]
        stop = frames if count is None else min(frames, first + count)
        return _restored([torch.from_numpy(part[start + first : start + stop]) for part in self._parts], room)

    def _write(self, folder: Path, dataset: Dataset, encode: Encode, encode_frames: int) -> None:
        """The file of each of PARTS, frame after frame, and index.json, synced to disk."""
        samples: dict[str, tuple[int, int]] = {}
        bad: dict[str, str] = {}
        shape: list[int] = [0, 0]
        with ExitStack() as stack:
            files = [stack.enter_context(open(folder / name, "wb")) for name, _ in PARTS[self.kind]]
            for frames in _chunks(self._decoded(dataset, samples, bad), encode_frames):
                features = encode(frames)
                if features.ndim != 3 or len(features) != len(frames):
                    raise DataError(
                        f"encode gave {list(features.shape)} for {len(frames)} frames; it must give [N P W]"
                    )
                shape = list(features.shape[1:])
                for file, part in zip(files, _stored(features.detach().cpu(), self.kind), strict=True):
                    file.write(part.numpy().tobytes())
        index = {
            "version": VERSION,
            "encoder_hash": self.encoder_hash,
            "fingerprint": dataset.fingerprint,
            "image_size": self.image_size,
            "kind": self.kind,
            "shape": [sum(count for _, count in samples.values()), *shape],
            "samples": samples,
            "bad": bad,
        }
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
        for path in (*folder.iterdir(), folder):
            sync(path)

    def _decoded(self, dataset: Dataset, samples: dict[str, tuple[int, int]], bad: dict[str, str]) -> Iterator[Tensor]:
        """Frames [F 3 S S] of sample after sample; enters each in `samples` (start, count) or in `bad`."""
        start = 0
        for number in range(len(dataset)):
            row = dataset.row(number)
            try:
                frames = decode_frames(dataset.read_row(row), self.image_size)
            except MediaError as error:
                bad[row.key] = error.reason
                continue
            samples[row.key] = (start, len(frames))
            start += len(frames)
            yield frames

    def _open(self, path: Path, fingerprint: str) -> None:
        """Map the features of a published cache. Raises DataError if it is not what its name says."""
        try:
            index = json.loads((path / "index.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}/index.json: cannot be read ({error}); remove this folder, it is made again"
            ) from error
        found = [index.get(name) for name in ("version", "encoder_hash", "fingerprint", "image_size", "kind")]
        expected = [VERSION, self.encoder_hash, fingerprint, self.image_size, self.kind]
        frames, patches, width = index.get("shape", (0, 0, 0))
        parts = []
        for name, dtype in PARTS[self.kind]:
            shape = (frames, patches, 1 if name == SCALES else width)
            size = (path / name).stat().st_size if (path / name).is_file() else -1
            if found != expected or size != np.dtype(dtype).itemsize * int(np.prod(shape)):
                told = f"{found}, {name} of {size} bytes"
                raise DataError(f"{path}: does not hold what its name says ({told}); remove this folder")
            # Mode "c": torch wants memory that may be written; a write would stay in this process.
            parts.append(np.memmap(path / name, dtype, "c", shape=shape) if size else np.empty(shape, dtype))
        self._parts, self._index, self.fingerprint = tuple(parts), index, fingerprint


def _stored(features: Tensor, kind: str) -> tuple[Tensor, ...]:
    """Features [N P W] as what the files of `PARTS` hold.

    int8: the largest number of a patch becomes 127, so that no number is off by more than 1/254 of it.
    """
    if kind == "bf16":
        return (features.to(torch.bfloat16).contiguous().view(torch.int16),)
    scales = features.float().abs().amax(-1, keepdim=True) / 127
    numbers = (features.float() / scales.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    return numbers, scales


def _restored(parts: list[Tensor], room: Tensor | None) -> Tensor:
    """Features [F P W] float32 of what `_stored` made."""
    numbers = parts[0]
    if room is None or len(room) < len(numbers):
        room = torch.empty(numbers.shape, dtype=torch.float32)
    made = room[: len(numbers)]
    if len(parts) == 1:
        return made.copy_(numbers.view(torch.bfloat16))
    return made.copy_(numbers).mul_(parts[1])


def _reopened(folder: Path, encoder_hash: str, image_size: int, kind: str, fingerprint: str) -> FeatureCache:
    """The same cache in another process."""
    cache = FeatureCache(folder, encoder_hash, image_size, kind)
    if fingerprint:
        cache._open(cache.path(fingerprint), fingerprint)
    return cache


def _chunks(parts: Iterator[Tensor], count: int) -> Iterator[Tensor]:
    """The same frames in the same order, `count` at a time (the last fewer)."""
    held: list[Tensor] = []
    frames = 0
    for part in parts:
        held.append(part)
        frames += len(part)
        if frames >= count:
            joined = torch.cat(held)
            whole = frames // count * count
            yield from (joined[at : at + count] for at in range(0, whole, count))
            held, frames = [joined[whole:]], frames - whole
    if frames:
        yield torch.cat(held)
