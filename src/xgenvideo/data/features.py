"""The frozen encoder's features of every frame, made once: the encoder never changes, so neither do they.

A cache is a folder named by the encoder's weights, the dataset, the image size, how pictures are made of frames and the
type of its numbers, so that a stale one is never found. Each shard of the dataset has a folder of its own in it, which
appears whole: many processes share the work, and what one has done is not done again after its death.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
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

VERSION = 3
ENCODE_FRAMES = 256
MOST_MAPPED = 4096  # shards; a process may map some ten thousand files

INDEX = "index.json"
FEATURES, SCALES = "features.bin", "scales.bin"
# The files of a shard's features and the type of their numbers.
PARTS = {"bf16": ((FEATURES, "<i2"),), "int8": ((FEATURES, "|i1"), (SCALES, "<f4"))}

Encode = Callable[[Tensor], Tensor]
Met = Callable[[bool], bool]


class FeatureCache:
    """Features of one encoder at one image size, below `folder`. `build` fills it or finds it filled; then `read`.

    `kind`: "bf16", or "int8" for half the bytes, where each patch's feature has a scale of its own.
    """

    def __init__(self, folder: Path, encoder_hash: str, image_size: int, kind: str = "bf16") -> None:
        assert kind in PARTS, f"features are kept as {' or '.join(PARTS)}, not {kind}"
        self.folder, self.encoder_hash, self.image_size, self.kind = Path(folder), encoder_hash, image_size, kind
        self.fingerprint = ""
        self._index: dict[str, Any] = {}
        self._mapped: dict[int, tuple[NDArray[Any], ...]] = {}

    def __repr__(self) -> str:
        samples = len(self._index.get("samples", ()))
        return f"FeatureCache({self.folder}, samples={samples}, features={self._index.get('shape', [])} {self.kind})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, self.encoder_hash, self.image_size, self.kind, self.fingerprint)

    def path(self, fingerprint: str) -> Path:
        """The folder of this encoder's features of the dataset with this fingerprint."""
        hashes = f"{self.encoder_hash[:16]}-{fingerprint[:16]}"
        return self.folder / f"features-{VERSION}-{hashes}-{self.image_size}-{PREPARED}-{self.kind}"

    def build(
        self,
        dataset: Dataset,
        encode: Encode,
        encode_frames: int = ENCODE_FRAMES,
        share: tuple[int, int] = (0, 1),
        met: Met = lambda done: done,
    ) -> "FeatureCache":
        """Encode every frame of every split, unless that was done before; returns this cache, open for `read`.

        `encode` takes frames [N 3 S S] uint8 with N at most `encode_frames` and gives features [N P W].
        A sample with an undecodable frame is remembered, and `read` refuses it.

        `share`: this process and how many call alike, each with every so-many-th shard. `met` is told after each batch
        of frames whether this process is done, and at the end until it answers that all are: there they can wait for
        each other without taking long work for a hang.
        """
        path, (own, processes) = self.path(dataset.fingerprint), share
        shards = {shard.removesuffix(".tar"): rows for shard, rows in dataset.shard_rows().items()}
        for shard in list(shards)[own::processes]:
            if (path / shard / INDEX).is_file():
                self._map(path / shard, self._read_index(path / shard, dataset.fingerprint)["shape"])
                continue
            with self._publishing(path / shard) as temporary:
                for _ in self._write(temporary, dataset, shards[shard], encode, encode_frames):
                    met(False)
        _until_all(met)
        if own == 0 and not (path / INDEX).is_file():
            self._join(path, list(shards), dataset.fingerprint)
        _until_all(met)
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
        shard, start, frames = self._index["samples"][key]
        stop = frames if count is None else min(frames, first + count)
        return _restored([torch.from_numpy(part[start + first : start + stop]) for part in self._parts(shard)], room)

    def _write(
        self, folder: Path, dataset: Dataset, numbers: Iterable[int], encode: Encode, encode_frames: int
    ) -> Iterator[None]:
        """The file of each of PARTS for the rows with these numbers, frame after frame, and an index; yields after each
        batch of frames.
        """
        samples: dict[str, tuple[int, int]] = {}
        bad: dict[str, str] = {}
        shape: list[int] = [0, 0]
        with ExitStack() as stack:
            files = [stack.enter_context(open(folder / name, "wb")) for name, _ in PARTS[self.kind]]
            for frames in _chunks(self._decoded(dataset, numbers, samples, bad), encode_frames):
                features = encode(frames)
                if features.ndim != 3 or len(features) != len(frames):
                    raise DataError(
                        f"encode gave {list(features.shape)} for {len(frames)} frames; it must give [N P W]"
                    )
                shape = list(features.shape[1:])
                for file, part in zip(files, _stored(features.detach().cpu(), self.kind), strict=True):
                    file.write(part.numpy().tobytes())
                yield
        shape = [sum(count for _, count in samples.values()), *shape]
        self._write_index(folder, dataset.fingerprint, {"shape": shape, "samples": samples, "bad": bad})

    def _decoded(
        self, dataset: Dataset, numbers: Iterable[int], samples: dict[str, tuple[int, int]], bad: dict[str, str]
    ) -> Iterator[Tensor]:
        """Frames [F 3 S S] of sample after sample; enters each in `samples` (start, count) or in `bad`."""
        start = 0
        for number in numbers:
            row = dataset.row(int(number))
            try:
                frames = decode_frames(dataset.read_row(row), self.image_size)
            except MediaError as error:
                bad[row.key] = error.reason
                continue
            samples[row.key] = (start, len(frames))
            start += len(frames)
            yield frames

    def _join(self, path: Path, shards: list[str], fingerprint: str) -> None:
        """Write the index of the whole, which every process reads, from those of all shards."""
        samples: dict[str, tuple[int, int, int]] = {}
        bad: dict[str, str] = {}
        shapes: list[list[int]] = []
        for number, shard in enumerate(shards):
            index = self._read_index(path / shard, fingerprint)
            samples |= {key: (number, start, frames) for key, (start, frames) in index["samples"].items()}
            bad |= index["bad"]
            shapes.append(index["shape"])
        shape = [sum(frames for frames, _, _ in shapes), *max(rest for _, *rest in shapes)]
        joined = {"shards": shards, "shapes": shapes, "shape": shape, "samples": samples, "bad": bad}
        temporary = path / f"{INDEX}.tmp-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            self._write_index(temporary, fingerprint, joined)
            os.replace(temporary / INDEX, path / INDEX)
            sync(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def _publishing(self, path: Path) -> Iterator[Path]:
        """A folder to write in, which then becomes `path`, or leaves nothing."""
        temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
        temporary.mkdir(parents=True)
        try:
            yield temporary
            publish_once(temporary, path, INDEX)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _named(self, fingerprint: str) -> dict[str, Any]:
        """What an index says of what it is of."""
        named = {"version": VERSION, "encoder_hash": self.encoder_hash, "fingerprint": fingerprint}
        return named | {"image_size": self.image_size, "kind": self.kind}

    def _write_index(self, folder: Path, fingerprint: str, values: dict[str, Any]) -> None:
        """Write an index into `folder`, and sync all that is in it to disk."""
        (folder / INDEX).write_text(json.dumps(self._named(fingerprint) | values), encoding="utf-8")
        for path in (*folder.iterdir(), folder):
            sync(path)

    def _read_index(self, folder: Path, fingerprint: str) -> dict[str, Any]:
        """The index in a folder. Raises DataError if it is not of what the folder's name says."""
        try:
            index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder}/{INDEX}: cannot be read ({error}); remove this folder, it is made again"
            ) from error
        expected = self._named(fingerprint)
        found = {name: index.get(name) for name in expected}
        if found != expected:
            raise DataError(f"{folder}: does not hold what its name says ({found}); remove this folder")
        return index

    def _open(self, path: Path, fingerprint: str) -> None:
        """Take a finished cache for `read`; a shard's features are mapped when they are first read."""
        self._index, self.fingerprint, self._mapped = self._read_index(path, fingerprint), fingerprint, {}

    def _parts(self, shard: int) -> tuple[NDArray[Any], ...]:
        """The features of a shard by its number in the index."""
        parts = self._mapped.get(shard)
        if parts is None:
            if len(self._mapped) >= MOST_MAPPED:
                self._mapped.clear()
            folder = self.path(self.fingerprint) / self._index["shards"][shard]
            parts = self._mapped[shard] = self._map(folder, self._index["shapes"][shard])
        return parts

    def _map(self, folder: Path, shape: list[int]) -> tuple[NDArray[Any], ...]:
        """The files of a shard's features of this shape. Raises DataError if one is not of their size."""
        frames, patches, width = shape
        parts = []
        for name, dtype in PARTS[self.kind]:
            part = (frames, patches, 1 if name == SCALES else width)
            size = (folder / name).stat().st_size if (folder / name).is_file() else -1
            if size != np.dtype(dtype).itemsize * int(np.prod(part)):
                raise DataError(f"{folder / name}: {size} bytes are not features {shape}; remove this folder")
            # Mode "c": torch wants memory that may be written; a write would stay in this process.
            parts.append(np.memmap(folder / name, dtype, "c", shape=part) if size else np.empty(part, dtype))
        return tuple(parts)


def _until_all(met: Met) -> None:
    """Wait until every process has come here."""
    while not met(True):
        pass


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
