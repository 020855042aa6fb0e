"""The frozen encoder's features of every frame, made once: the encoder never changes, so neither do they.

A cache is a folder named by the encoder's weights, the dataset, the image size and how pictures are made of frames, so
that a stale one is never found.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.data.dataset import Dataset
from xgenvideo.data.frames import PREPARED, decode_frames
from xgenvideo.data.shards import sync
from xgenvideo.errors import DataError, MediaError

VERSION = 1
ENCODE_FRAMES = 256

Encode = Callable[[Tensor], Tensor]


class FeatureCache:
    """Features of one encoder at one image size, below `folder`. `build` fills it or finds it filled; then `read`."""

    def __init__(self, folder: Path, encoder_hash: str, image_size: int) -> None:
        self.folder, self.encoder_hash, self.image_size = Path(folder), encoder_hash, image_size
        self.fingerprint = ""
        self._index: dict[str, Any] = {}
        self._data: NDArray[np.uint16] = np.empty((0, 0, 0), dtype=np.uint16)

    def __repr__(self) -> str:
        samples = len(self._index.get("samples", ()))
        return f"FeatureCache({self.folder}, samples={samples}, features={list(self._data.shape)} bf16)"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, self.encoder_hash, self.image_size, self.fingerprint)

    def path(self, fingerprint: str) -> Path:
        """The folder of this encoder's features of the dataset with this fingerprint."""
        return self.folder / f"features-{self.encoder_hash[:16]}-{fingerprint[:16]}-{self.image_size}-{PREPARED}"

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
                _publish(temporary, path)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        self._open(path, dataset.fingerprint)
        return self

    def read(self, key: str, first: int = 0, count: int | None = None) -> Tensor:
        """Features [F P W] float32 of a sample: `count` frames (default all) from frame `first` on.

        Raises MediaError for a sample whose frames cannot be decoded, DataError for an unknown key or an unbuilt cache.
        """
        if key in self._index.get("bad", {}):
            raise MediaError(self._index["bad"][key], key, "found when the features were made")
        if key not in self._index.get("samples", {}):
            raise DataError(f"{self!r}: has no features of {key!r}; call build(dataset, encode) first")
        start, frames = self._index["samples"][key]
        stop = frames if count is None else min(frames, first + count)
        bits = self._data[start + first : start + stop]
        return torch.from_numpy(bits).view(torch.bfloat16).float()

    def _write(self, folder: Path, dataset: Dataset, encode: Encode, encode_frames: int) -> None:
        """features.bin (bf16 bits, frame after frame) and index.json, synced to disk."""
        samples: dict[str, tuple[int, int]] = {}
        bad: dict[str, str] = {}
        shape: list[int] = [0, 0]
        with open(folder / "features.bin", "wb") as file:
            for frames in _chunks(self._decoded(dataset, samples, bad), encode_frames):
                features = encode(frames)
                if features.ndim != 3 or len(features) != len(frames):
                    raise DataError(
                        f"encode gave {list(features.shape)} for {len(frames)} frames; it must give [N P W]"
                    )
                shape = list(features.shape[1:])
                bits = features.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
                file.write(bits.numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
        index = {
            "version": VERSION,
            "encoder_hash": self.encoder_hash,
            "fingerprint": dataset.fingerprint,
            "image_size": self.image_size,
            "shape": [sum(count for _, count in samples.values()), *shape],
            "samples": samples,
            "bad": bad,
        }
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
        sync(folder / "index.json")
        sync(folder)

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
        found = [index.get(name) for name in ("version", "encoder_hash", "fingerprint", "image_size")]
        expected = [VERSION, self.encoder_hash, fingerprint, self.image_size]
        file, shape = path / "features.bin", tuple(index.get("shape", (0, 0, 0)))
        size = file.stat().st_size if file.is_file() else -1
        if found != expected or size != 2 * int(np.prod(shape)):
            raise DataError(f"{path}: does not hold what its name says ({found}, {size} bytes); remove this folder")
        # Mode "c": torch wants memory that may be written; a write would stay in this process.
        self._data = (
            np.memmap(file, dtype=np.uint16, mode="c", shape=shape) if size else np.empty(shape, dtype=np.uint16)
        )
        self._index, self.fingerprint = index, fingerprint


def _reopened(folder: Path, encoder_hash: str, image_size: int, fingerprint: str) -> FeatureCache:
    """The same cache in another process."""
    cache = FeatureCache(folder, encoder_hash, image_size)
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


def _publish(temporary: Path, path: Path) -> None:
    """Rename into place; a cache that another process published meanwhile is as good as ours."""
    try:
        os.rename(temporary, path)
    except OSError as error:
        if not (path / "index.json").is_file():
            raise DataError(f"{path}: cannot be written ({error}); remove this folder, it is made again") from error
    sync(path.parent)
