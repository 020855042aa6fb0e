"""Checkpoints that are whole or not there: written aside, hashed from memory, synced, committed last, renamed.

A checkpoint is a folder `step-00000200` of safetensors files, `state.json` and `COMMIT.json`, which names the hash of
every other file. There is no pickle. The newest checkpoint is computed from commits that verify, never from a pointer.
"""

import hashlib
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from xgenvideo.errors import CheckpointError

VERSION = 1
COMMIT, STATE = "COMMIT.json", "state.json"
TENSORS = ".safetensors"


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """One checkpoint in memory: named groups of tensors (such as "model", "optimizer"), and a state of JSON values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    def __repr__(self) -> str:
        groups = ", ".join(f"{name}={len(group)} tensors" for name, group in self.tensors.items())
        return f"Checkpoint(step={self.step}, {groups})"


@dataclass(frozen=True)
class Found:
    """What a folder of checkpoints holds: the newest that verifies, and why each newer one was passed over."""

    newest: Path | None
    refused: tuple[str, ...]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint below `folder`; returns its path once it is safe on disk. Never overwrites.

    Raises CheckpointError where the step is there already or the disk refuses; what was there before is untouched.
    """
    final = folder / f"step-{checkpoint.step:08d}"
    if final.exists():
        raise CheckpointError(f"{final}: is there already; a checkpoint is never overwritten")
    temporary = folder / f".{final.name}.{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        files = {name + TENSORS: save(group) for name, group in checkpoint.tensors.items()}
        files[STATE] = json.dumps(checkpoint.state, indent=2).encode()
        commit = {
            "version": VERSION,
            "step": checkpoint.step,
            "save_id": secrets.token_hex(8),
            "files": {name: {"sha256": _sha256(data), "bytes": len(data)} for name, data in files.items()},
        }
        for name, data in files.items():
            _write_synced(temporary / name, data)
        _write_synced(temporary / COMMIT, json.dumps(commit, indent=2).encode())
        _sync(temporary)
        os.rename(temporary, final)
        _sync(folder)
    except OSError as error:
        raise CheckpointError(
            f"{final}: cannot be written ({error.strerror or error}); older checkpoints are intact. "
            "Free space or make the folder writable, then run again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, every byte checked against its commit before it is used. Raises CheckpointError."""
    files = _verified(path, _commit(path))
    try:
        tensors = {name.removesuffix(TENSORS): load(data) for name, data in files.items() if name.endswith(TENSORS)}
        return Checkpoint(int(path.name.removeprefix("step-")), tensors, json.loads(files[STATE]))
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: its files are as committed but cannot be read ({error})") from error


def newest_verified(folder: Path) -> Found:
    """The newest checkpoint of a folder whose every byte is as committed, and the reasons against newer ones."""
    refused: list[str] = []
    for path in reversed(checkpoints(folder)):
        try:
            _verified(path, _commit(path))
            return Found(path, tuple(refused))
        except CheckpointError as error:
            refused.append(str(error))
    return Found(None, tuple(refused))


def checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a folder by step, verified or not."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` (at least 2) checkpoints that verify, and remains of unfinished saves.

    A checkpoint that does not verify is left where it is: it is evidence, and never counts as one of those kept.
    """
    for remains in folder.glob(".step-*"):
        shutil.rmtree(remains, ignore_errors=True)
    removed: list[Path] = []
    kept = 0
    for path in reversed(checkpoints(folder)):
        if kept < max(2, keep):
            kept += _verifies(path)
        elif _verifies(path):
            shutil.rmtree(path)
            removed.append(path)
    return removed


def _verifies(path: Path) -> bool:
    try:
        _verified(path, _commit(path))
    except CheckpointError:
        return False
    return True


def _commit(path: Path) -> dict[str, Any]:
    """The commit record of a checkpoint. Raises CheckpointError."""
    try:
        commit: dict[str, Any] = json.loads((path / COMMIT).read_bytes())
        if commit["version"] != VERSION or f"step-{commit['step']:08d}" != path.name:
            raise ValueError(f"version {commit['version']}, step {commit['step']}")
        dict(commit["files"])[STATE]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: has no commit record that can be read ({error})") from error
    return commit


def _verified(path: Path, commit: dict[str, Any]) -> dict[str, bytes]:
    """The bytes of all files a commit names, each as long and of the hash it names, and no other file."""
    names = {child.name for child in path.iterdir()} - {COMMIT}
    if names != set(commit["files"]):
        raise CheckpointError(f"{path}: holds the files {sorted(names)}, committed were {sorted(commit['files'])}")
    files = {}
    for name, expected in commit["files"].items():
        data = (path / name).read_bytes()
        if len(data) != expected["bytes"] or _sha256(data) != expected["sha256"]:
            raise CheckpointError(f"{path / name}: is not what was committed ({len(data)} bytes)")
        files[name] = data
    return files


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make renames and new names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
