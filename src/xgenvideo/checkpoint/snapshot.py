"""What a checkpoint holds, and the format of its folder.

step-00000200/
├── config.json                               the resolved config of the run
├── model.safetensors                         one file a part (model, optimizer, rank) and rank that has some of it:
│   or model-00003-of-00008.safetensors       rank 3 of 8
├── small-00003-of-00008.safetensors          of many ranks: pieces of at most SMALL_BYTES of all parts
├── index.json                                which piece of which tensor lies where
├── state.json                                loader position, versions, names of what is not saved
└── COMMIT.json                               size and SHA-256 of every other file, and of this list; written last
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.errors import CheckpointError

VERSION = 2
COMMIT, CONFIG, STATE, INDEX = "COMMIT.json", "config.json", "state.json", "index.json"
STEP_FOLDER = re.compile(r"step-(\d{8,})")
FILE_NAME = re.compile(r"[A-Za-z0-9_]+(-\d{5}-of-\d{5})?\.(safetensors|json)")
PART_NAME = re.compile(r"[a-z0-9_]+")
RANK_PART, SMALL = "rank", "small"
SMALL_BYTES = 64 * 2**10
PERMANENT, EPHEMERAL = "permanent", "ephemeral"
# Names as safetensors has them.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, repr=False)
class Snapshot:
    """Everything needed to go on after `step` optimizer steps.

    `tensors`: name of a part -> names -> plain tensors or DTensors. A name means the same tensor on every rank that has
    it: a plain one is equal there, a DTensor is this rank's piece. `state` is JSON and that of rank 0. `rank_state` is
    this rank's alone, such as its random states; of another number of ranks it comes back empty.
    """

    step: int
    config: RunConfig
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]
    rank_state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bad = [name for name in self.tensors if not PART_NAME.fullmatch(name) or name in (RANK_PART, SMALL)]
        if self.step < 0 or bad:
            raise CheckpointError(
                f"a snapshot of step {self.step} with parts {sorted(self.tensors)}: bad step or {bad}"
            )
        for part, tensors in self.tensors.items():
            odd = [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
            odd += [f"{name} of {t.dtype}" for name, t in tensors.items() if name not in odd and not _savable(t)]
            if odd:
                raise CheckpointError(f"a snapshot holds tensors of {', '.join(DTYPES)} only; {part} has {odd[:5]}")

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={len(tensors)} tensors" for name, tensors in self.tensors.items())
        return f"Snapshot(step={self.step}, {parts})"


def _savable(tensor: Tensor) -> bool:
    return tensor.dtype in DTYPE_NAMES


def flat_tensors(snapshot: Snapshot, rank: int) -> dict[str, Tensor]:
    """All tensors of a rank by full name: PART/NAME, and rank/NNNNN/NAME for its own state."""
    named = {f"{part}/{name}": tensor for part, own in snapshot.tensors.items() for name, tensor in own.items()}
    return named | {f"{rank_prefix(rank)}{name}": tensor for name, tensor in snapshot.rank_state.items()}


def rank_prefix(rank: int) -> str:
    """What the full names of a rank's own state begin with."""
    return f"{RANK_PART}/{rank:05d}/"


def tensor_file(part: str, rank: int, ranks: int) -> str:
    """Name of the file that a rank writes for a part."""
    return f"{part}.safetensors" if ranks == 1 else f"{part}-{rank:05d}-of-{ranks:05d}.safetensors"


def folder_name(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:08d}"


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Step and path of everything in `folder` that is named as a checkpoint, newest first; nothing is read."""
    if not folder.is_dir():
        return []
    named = [(STEP_FOLDER.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)


@dataclass(frozen=True)
class Listed:
    """Size and SHA-256 of a file, taken from memory before it was written."""

    size: int
    sha256: str

    @staticmethod
    def of(content: bytes) -> "Listed":
        """That of a small file."""
        return Listed(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Commit:
    """The commit record: a checkpoint exists when this does. `kind`: permanent or ephemeral; `token`: of the lease."""

    step: int
    save_id: str
    ranks: int
    kind: str
    token: int
    files: dict[str, Listed]

    def text(self) -> str:
        """As JSON, with its own hash."""
        listed = {name: {"bytes": file.size, "sha256": file.sha256} for name, file in sorted(self.files.items())}
        record = {"version": VERSION, "step": self.step, "save_id": self.save_id, "ranks": self.ranks}
        record |= {"kind": self.kind, "token": self.token, "files": listed}
        return json.dumps(record | {"record_sha256": _record_hash(record)}, indent=2) + "\n"


def read_commit(path: Path) -> Commit:
    """The commit record of the checkpoint at `path`. Raises CheckpointError with the reason."""
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
    files = {name: Listed(file["bytes"], file["sha256"]) for name, file in record["files"].items()}
    return Commit(record["step"], record["save_id"], record["ranks"], record["kind"], record["token"], files)


def _record_hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
