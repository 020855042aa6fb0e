"""The storage reader of a checkpoint: every file that a rank needs is read and verified before any tensor is touched.

What is parsed is what was hashed: a file is read once. Only safetensors and JSON are parsed. Also usable as dcp.load's
storage_reader.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from xgenvideo.checkpoint.snapshot import DTYPES, INDEX, Commit, Listed, read_commit
from xgenvideo.errors import CheckpointError


class ShardReader(StorageReader):
    """Reads the checkpoint at `path`, whatever layout it was saved from."""

    def __init__(self, path: Path) -> None:
        self.path, self.commit = path, read_commit(path)
        self.index = self._read_index()
        self._files: dict[str, dict[str, Tensor]] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Forget the files that were read."""
        self._files = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the checkpoint holds, from its verified index."""
        metadata = {}
        for name, about in self.index.items():
            properties = TensorProperties(dtype=DTYPES[about["dtype"]])
            chunks = [
                ChunkStorageMetadata(torch.Size(piece["offsets"]), torch.Size(piece["sizes"]))
                for piece in about["pieces"]
            ]
            metadata[name] = TensorStorageMetadata(properties, torch.Size(about["shape"]), chunks)
        return Metadata(dict(metadata))

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Read and verify every file of the plan. Raises CheckpointError before a single weight is changed."""
        for file in sorted({self._piece(item)["file"] for item in plan.items}):
            self._files[file] = self._read_tensors(file)
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        """Copy the pieces into the tensors of the plan."""
        with torch.no_grad():
            for item in plan.items:
                piece = self._piece(item)
                saved = self._files[piece["file"]][piece["key"]]
                for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    saved = saved.narrow(dim, offset, length)
                planner.resolve_tensor(item).copy_(saved)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """No: a reader is made for a folder."""
        return False

    def read_json(self, name: str) -> Any:
        """A JSON file of the checkpoint, verified."""
        return json.loads(bytes(read_verified(self.path, name, self.commit)))

    def _read_index(self) -> dict[str, Any]:
        values = json.loads(bytes(read_verified(self.path, INDEX, self.commit)))
        if values["save_id"] != self.commit.save_id:
            raise CheckpointError(f"{self.path}: {INDEX} is of the save {values['save_id']}, not {self.commit.save_id}")
        index: dict[str, Any] = values["tensors"]
        return index

    def _piece(self, item: ReadItem) -> dict[str, Any]:
        assert item.storage_index.index is not None, "a plan knows the pieces by number"
        piece: dict[str, Any] = self.index[item.storage_index.fqn]["pieces"][item.storage_index.index]
        return piece

    def _read_tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of a file by key, views of the bytes that were verified."""
        content = read_verified(self.path, file, self.commit)
        header = json.loads(bytes(content[8 : 8 + int.from_bytes(content[:8], "little")]))
        about = header.pop("__metadata__")
        if about["save_id"] != self.commit.save_id:
            raise CheckpointError(f"{self.path / file}: is of the save {about['save_id']}, not {self.commit.save_id}")
        start = len(content) - max((entry["data_offsets"][1] for entry in header.values()), default=0)
        return {key: _tensor(content, start, entry) for key, entry in header.items()}


def _tensor(content: bytearray, start: int, entry: dict[str, Any]) -> Tensor:
    dtype, shape = DTYPES[entry["dtype"]], torch.Size(entry["shape"])
    if not shape.numel():
        return torch.empty(shape, dtype=dtype)
    offset = start + entry["data_offsets"][0]
    return torch.frombuffer(content, dtype=dtype, count=shape.numel(), offset=offset).reshape(shape)


def read_verified(path: Path, name: str, commit: Commit) -> bytearray:
    """Content of a file of the checkpoint at `path`. Raises CheckpointError if it is not what was committed."""
    listed = commit.files.get(name)
    if listed is None:
        raise CheckpointError(f"{path}: has no {name}, only {', '.join(sorted(commit.files))}")
    try:
        with open(path / name, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            _same_size(path / name, listed, size)
            content = bytearray(size)
            rest = memoryview(content)
            while rest and (read := file.readinto(rest)):
                rest = rest[read:]
    except OSError as error:
        raise CheckpointError(f"{path / name}: cannot be read ({error})") from error
    _same_hash(path / name, listed, hashlib.sha256(content).hexdigest())
    return content


CHUNK_BYTES = 4 * 2**20


def verify_file(path: Path, listed: Listed, from_disk: bool = False) -> None:
    """Compare size and hash of a file with the commit record, a chunk at a time. Raises CheckpointError: what differs.

    `from_disk` asks the system to forget its copy in memory first, so that what is checked is what the disk has.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            _same_size(path, listed, os.fstat(file.fileno()).st_size)
            if from_disk and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    _same_hash(path, listed, digest.hexdigest())


def _same_size(path: Path, listed: Listed, size: int) -> None:
    if size != listed.size:
        raise CheckpointError(f"{path}: has {size} bytes, its commit record says {listed.size}")


def _same_hash(path: Path, listed: Listed, sha256: str) -> None:
    if sha256 != listed.sha256:
        raise CheckpointError(f"{path}: SHA-256 is {sha256}, its commit record says {listed.sha256}")
