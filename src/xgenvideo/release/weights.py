"""Weights as safetensors shards with the index that Hugging Face's tools read."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from xgenvideo.data.shards import sync
from xgenvideo.errors import ConfigError
from xgenvideo.infer.release import INDEX

MAX_SHARD_BYTES = 4 * 2**30


def write_weights(state: dict[str, Tensor], folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write model-00001-of-00003.safetensors and so on, and the index, synced to disk.

    A shard holds at most `max_shard_bytes` of tensors, or one tensor that is larger. Raises ConfigError for a size
    below 1.
    """
    if max_shard_bytes < 1:
        raise ConfigError("max_shard_bytes", max_shard_bytes, "must be at least 1")
    parts = list(split(state, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(parts, start=1):
        shard = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        # A clone each: safetensors refuses tensors that share memory.
        tensors = {name: state[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in names}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        sync(folder / shard)
        weight_map |= dict.fromkeys(names, shard)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    sync(folder / INDEX)


def split(state: dict[str, Tensor], max_shard_bytes: int) -> Iterator[list[str]]:
    """Names in their order, cut where the next tensor would make a shard too large."""
    names: list[str] = []
    size = 0
    for name, tensor in state.items():
        if names and size + tensor.nbytes > max_shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.nbytes
    if names:
        yield names
