"""What a checkpoint holds, and the format of its folder.

step-00000200/
├── config.json          the resolved config of the run
├── model.safetensors    one file a part: model, optimizer, random
├── state.json           position of the loader, versions, names of what is not saved (dataset, frozen encoder)
└── COMMIT.json          size and SHA-256 of every other file, and of this list; written last
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.errors import CheckpointError

VERSION = 1
COMMIT = "COMMIT.json"
STEP_FOLDER = re.compile(r"step-(\d{8,})")
FILE_NAME = re.compile(r"[a-z0-9_]+(-[a-z0-9]+)*\.(safetensors|json)")
PART_NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True, repr=False)
class Snapshot:
    """Everything needed to go on after `step` optimizer steps. `tensors`: name of a part -> names -> tensors."""

    step: int
    config: RunConfig
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    def __post_init__(self) -> None:
        bad = [name for name in self.tensors if not PART_NAME.fullmatch(name)]
        if self.step < 0 or bad:
            raise CheckpointError(
                f"a snapshot of step {self.step} with parts {sorted(self.tensors)}: bad step or {bad}"
            )

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={len(tensors)} tensors" for name, tensors in self.tensors.items())
        return f"Snapshot(step={self.step}, {parts})"


def folder_name(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of everything in `folder` that is named as a checkpoint, newest first; nothing is read."""
    if not folder.is_dir():
        return []
    named = [(STEP_FOLDER.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)


def commit_text(step: int, files: dict[str, bytes]) -> str:
    """The commit record of `files`, by name; the hashes are those of the bytes in memory."""
    listed = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    record = {"version": VERSION, "step": step, "files": listed}
    return json.dumps(record | {"record_sha256": _record_hash(record)}, indent=2) + "\n"


def read_commit(path: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Step, and size and SHA-256 by file, of the checkpoint at `path`. Raises CheckpointError with the reason."""
    try:
        record = json.loads((path / COMMIT).read_bytes())
        found = record.pop("record_sha256")
        expected, version = _record_hash(record), record["version"]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: has no {COMMIT}; its save did not finish") from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {COMMIT} cannot be read ({error!r})") from error
    if found != expected:
        raise CheckpointError(f"{path}: {COMMIT} was changed: its own hash is {found}, its content gives {expected}")
    if version != VERSION:
        raise CheckpointError(f"{path}: format version is {version!r}, this program reads version {VERSION}")
    bad = [name for name in record["files"] if not FILE_NAME.fullmatch(name)]
    if bad or folder_name(record["step"]) != path.name:
        raise CheckpointError(f"{path}: {COMMIT} is of step {record['step']} and lists {bad or 'good names'}")
    return record["step"], record["files"]


def _record_hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
