"""Weights as safetensors shards with the index that Hugging Face's tools read, one shard in memory at a time."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from xgenvideo.checkpoint.reader import ShardReader
from xgenvideo.checkpoint.snapshot import DTYPES
from xgenvideo.data.shards import sync
from xgenvideo.errors import CheckpointError, ConfigError
from xgenvideo.infer.release import INDEX

MAX_SHARD_BYTES = 4 * 2**30
PART = "model/"


@dataclass(frozen=True)
class Weights:
    """Tensors by name, in order: `sizes` in bytes, and what gives a tensor when it is asked for."""

    sizes: dict[str, int]
    read: Callable[[str], Tensor]

    def __or__(self, others: "Weights") -> "Weights":
        """These, then the others."""
        return Weights(self.sizes | others.sizes, lambda name: (self if name in self.sizes else others).read(name))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each name with its tensor, read one after another."""
        return ((name, self.read(name)) for name in self.sizes)


def in_memory(state: dict[str, Tensor]) -> Weights:
    """Those of a model that is whole in memory."""
    return Weights({name: tensor.nbytes for name, tensor in state.items()}, state.__getitem__)


def in_checkpoint(path: Path) -> Weights:
    """The trained tensors of the checkpoint at `path`, which was verified, saved by ranks in any layout.

    A tensor is put together from its ranks' pieces when it is asked for, so the model is never whole in memory. Raises
    CheckpointError for a file of another save.
    """
    reader = ShardReader(path)
    index = {name.removeprefix(PART): about for name, about in reader.index.items() if name.startswith(PART)}

    def read(name: str) -> Tensor:
        about = index[name]
        whole = torch.empty(about["shape"], dtype=DTYPES[about["dtype"]])
        for piece in about["pieces"]:
            place = tuple(slice(at, at + size) for at, size in zip(piece["offsets"], piece["sizes"], strict=True))
            whole[place] = _piece(path / piece["file"], piece["key"], reader.commit.save_id)
        return whole

    return Weights({name: _bytes(about) for name, about in index.items()}, read)


def _piece(file: Path, key: str, save_id: str) -> Tensor:
    """One tensor of a file of a checkpoint; the others are not read."""
    with safe_open(file, framework="pt") as opened:
        if (opened.metadata() or {}).get("save_id") != save_id:
            raise CheckpointError(f"{file}: is not of the save {save_id}; it was changed during the export")
        tensor: Tensor = opened.get_tensor(key)
        return tensor


def _bytes(about: dict[str, Any]) -> int:
    return torch.Size(about["shape"]).numel() * DTYPES[about["dtype"]].itemsize


def write_weights(weights: Weights, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write model-00001-of-00003.safetensors and so on, and the index, synced to disk.

    A shard holds at most `max_shard_bytes` of tensors, or one tensor that is larger. Raises ConfigError for a size
    below 1.
    """
    if max_shard_bytes < 1:
        raise ConfigError("max_shard_bytes", max_shard_bytes, "must be at least 1")
    parts = list(split(weights.sizes, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(parts, start=1):
        shard = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        # A clone each: safetensors refuses tensors that share memory.
        read = ((name, weights.read(name).detach().cpu()) for name in names)
        tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in read}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        sync(folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": sum(weights.sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    sync(folder / INDEX)


def split(sizes: dict[str, int], max_shard_bytes: int) -> Iterator[list[str]]:
    """Names in their order, cut where the next tensor would make a shard too large; sizes in bytes."""
    names: list[str] = []
    shard_bytes = 0
    for name, size in sizes.items():
        if names and shard_bytes + size > max_shard_bytes:
            yield names
            names, shard_bytes = [], 0
        names.append(name)
        shard_bytes += size
    if names:
        yield names
