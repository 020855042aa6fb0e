"""Loading: the newest checkpoint is computed from verified commits; what was hashed is what is parsed. No pickle."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from xgenvideo import config
from xgenvideo.checkpoint.snapshot import Snapshot, read_commit, step_folders
from xgenvideo.errors import CheckpointError

CHUNK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Search:
    """The newest checkpoint that verifies, if any, and the newer ones that do not, each with its reason."""

    newest: Path | None
    refused: dict[Path, str]


def search(folder: Path) -> Search:
    """Look for the newest verified checkpoint below `folder` (a run's `checkpoints`)."""
    refused = {}
    for _, path in step_folders(folder):
        try:
            verify(path)
        except CheckpointError as error:
            refused[path] = str(error)
            continue
        return Search(path, refused)
    return Search(None, refused)


def newest_verified(folder: Path) -> Path:
    """The newest checkpoint below `folder` whose every hash is right. Raises CheckpointError: why there is none."""
    found = search(folder)
    if found.newest is None:
        reasons = "; ".join(found.refused.values()) or "nothing was saved there"
        raise CheckpointError(f"{folder}: no checkpoint can be used ({reasons})")
    return found.newest


def verify(path: Path) -> None:
    """Compare size and hash of every file with the commit record. Raises CheckpointError with the first difference."""
    _, files = read_commit(path)
    for name, listed in files.items():
        _matches(path / name, listed, *_measure(path / name))


def load(path: Path, parts: Collection[str] | None = None) -> Snapshot:
    """Read a checkpoint, verifying every file that is read; `parts` limits the tensors (None: all).

    Raises CheckpointError for a corrupt or incomplete one, ConfigError for a config that this program cannot read.
    """
    step, files = read_commit(path)
    names = {part: f"{part}.safetensors" for part in parts} if parts is not None else _parts(files)
    missing = ({"config.json", "state.json"} | set(names.values())) - set(files)
    if missing:
        raise CheckpointError(f"{path}: has no {', '.join(sorted(missing))}, only {', '.join(sorted(files))}")
    tensors = {part: _tensors(path / name, _read(path / name, files[name])) for part, name in names.items()}
    values = json.loads(_read(path / "config.json", files["config.json"]))
    state = json.loads(_read(path / "state.json", files["state.json"]))
    return Snapshot(step, config.from_dict(values), tensors, state)


def _parts(files: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name.removesuffix(".safetensors"): name for name in files if name.endswith(".safetensors")}


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error})") from error


def _read(path: Path, listed: dict[str, Any]) -> bytes:
    """Content of a file, verified. What is parsed is what was hashed: the file is read once."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    _matches(path, listed, len(content), hashlib.sha256(content).hexdigest())
    return content


def _measure(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file, without holding it in memory."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return size, digest.hexdigest()


def _matches(path: Path, listed: dict[str, Any], size: int, sha256: str) -> None:
    if size != listed["bytes"]:
        raise CheckpointError(f"{path}: has {size} bytes, its commit record says {listed['bytes']}")
    if sha256 != listed["sha256"]:
        raise CheckpointError(f"{path}: SHA-256 is {sha256}, its commit record says {listed['sha256']}")
