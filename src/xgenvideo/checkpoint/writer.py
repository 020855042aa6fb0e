"""The storage writer of a checkpoint: safetensors, hashed in memory, fsynced. Also usable as dcp.save's storage_writer.

A rank's pieces of a part go into one file, straight from the staging tensors: they are hashed and written, not copied.
Of many ranks the small pieces of all parts go into a file of their own: what ranks hold alike (norms, counts of steps)
is small, one of them writes it, and the others read it without the rest that it writes.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from xgenvideo.checkpoint.files import write_synced
from xgenvideo.checkpoint.snapshot import DTYPE_NAMES, INDEX, SMALL, SMALL_BYTES, Listed, tensor_file
from xgenvideo.errors import CheckpointError


@dataclass(frozen=True)
class Placed:
    """Where a piece of a tensor lies, and the whole file's size and hash."""

    save_id: str
    file: str
    key: str
    listed: Listed


class ShardWriter(StorageWriter):
    """Writes one rank's files of one save into `folder`; on rank 0 `finish` writes the index and fills `files`."""

    def __init__(self, folder: Path, rank: int, ranks: int, step: int, save_id: str) -> None:
        self.folder, self.rank, self.ranks, self.step, self.save_id = folder, rank, ranks, step, save_id
        self.files: dict[str, Listed] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget: a writer is for one save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are: a rank's file names follow from its number."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        """Write this rank's pieces, a file a part, and one for what is small. Raises OSError when the disk refuses."""
        parts: dict[str, list[WriteItem]] = {}
        for item in plan.items:
            part = SMALL if self.ranks > 1 and is_small(item) else item.index.fqn.partition("/")[0]
            parts.setdefault(part, []).append(item)
        results = [result for part, items in parts.items() for result in self._write_part(part, items, planner)]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Rank 0, once every rank has written: the index. Raises CheckpointError if a piece is of another save."""
        placed: dict[Any, Placed] = {
            (result.index.fqn, result.index.offset): result.storage_data for rank in results for result in rank
        }
        other = sorted({place.save_id for place in placed.values()} - {self.save_id})
        if other:
            raise CheckpointError(f"{self.folder}: a rank wrote for the save {', '.join(other)}, not {self.save_id}")
        self.files = {place.file: place.listed for place in placed.values()}
        text = json.dumps({"save_id": self.save_id, "tensors": index_of(metadata, placed)}, sort_keys=True) + "\n"
        write_synced(self.folder / INDEX, text.encode())
        self.files[INDEX] = Listed.of(text.encode())

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """No: a writer is made for a folder."""
        return False

    def _write_part(self, part: str, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        # Widest first: every tensor is then aligned to its own size.
        pieces = sorted(((item, _host(planner, item)) for item in items), key=lambda pair: -pair[1].element_size())
        header = self._header(part, pieces)
        digest, size = hashlib.sha256(header), len(header)
        views = [_bytes(tensor) for _, tensor in pieces]
        for view in views:
            digest.update(view)
            size += len(view)
        listed, name = Listed(size, digest.hexdigest()), tensor_file(part, self.rank, self.ranks)
        write_synced(self.folder / name, _joined(header, views))
        return [
            WriteResult(item.index, tensor.nbytes, Placed(self.save_id, name, _key(part, item), listed))
            for item, tensor in pieces
        ]

    def _header(self, part: str, pieces: list[tuple[WriteItem, Tensor]]) -> bytes:
        """A safetensors header: its length in 8 bytes, then JSON padded to a multiple of 8."""
        own = {"format": "pt", "save_id": self.save_id, "step": str(self.step)}
        values: dict[str, Any] = {"__metadata__": own | {"rank": str(self.rank), "ranks": str(self.ranks)}}
        start = 0
        for item, tensor in pieces:
            offsets = [start, start + tensor.nbytes]
            about = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
            values[_key(part, item)] = about
            start += tensor.nbytes
        text = json.dumps(values, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def is_small(item: WriteItem) -> bool:
    """Whether a piece has at most SMALL_BYTES."""
    assert item.tensor_data is not None, f"{item.index.fqn} is not a tensor"
    about = item.tensor_data
    return about.chunk.sizes.numel() * about.properties.dtype.itemsize <= SMALL_BYTES


def index_of(metadata: Metadata, placed: dict[Any, Placed]) -> dict[str, Any]:
    """By full name of a tensor: dtype, shape, and for each piece its offsets, sizes, file and key there."""
    index = {}
    for name, about in metadata.state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata), f"{name} is not a tensor"
        pieces = []
        for chunk in about.chunks:
            place = placed[name, chunk.offsets]
            where = {"file": place.file, "key": place.key}
            pieces.append({"offsets": list(chunk.offsets), "sizes": list(chunk.sizes)} | where)
        shape = list(about.size)
        index[name] = {"dtype": DTYPE_NAMES[about.properties.dtype], "shape": shape, "pieces": pieces}
    return index


def _host(planner: SavePlanner, item: WriteItem) -> Tensor:
    """The piece as a contiguous tensor in host memory; staged ones are that already."""
    found = planner.resolve_data(item)
    assert isinstance(found, Tensor), f"{item.index.fqn} is not a tensor"
    return found.detach().cpu().contiguous()


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor in host memory."""
    array: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _key(part: str, item: WriteItem) -> str:
    """The tensor's name without the part that the file is of; of a piece, with the piece's offsets."""
    assert item.tensor_data is not None, f"{item.index.fqn} is not a tensor"
    name, chunk = item.index.fqn.removeprefix(f"{part}/"), item.tensor_data.chunk
    if chunk.sizes == item.tensor_data.size:
        return name
    return f"{name}@{','.join(map(str, chunk.offsets))}"


def _joined(header: bytes, views: list[memoryview]) -> Iterator[bytes | memoryview]:
    yield header
    yield from views
