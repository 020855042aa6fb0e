"""Which checkpoints stay: the newest permanent ones, the newest of all, and never fewer than two that verify."""

import contextlib
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from xgenvideo.checkpoint.load import verify
from xgenvideo.checkpoint.snapshot import EPHEMERAL, PERMANENT, read_commit, step_folders
from xgenvideo.errors import CheckpointError

UNFINISHED, REMOVED = ".unfinished-", ".removed-"
FEWEST_KEPT = 2


def retain(folder: Path, keep: int, verified: set[Path] | None = None) -> list[Path]:
    """Remove what is older than the newest `keep` (at least 2) permanent checkpoints that verify, and ephemeral ones
    that are not the newest, but never leave fewer than 2 verified; returns what was removed.

    Only what verifies is counted, and what does not is left where it is until `keep` newer ones verify. `verified`
    holds those that were read back already; what is read back here is added.
    """
    verified = set() if verified is None else verified
    removed, permanent, counted = [], 0, 0
    for _, path in step_folders(folder):
        if permanent >= max(keep, FEWEST_KEPT):
            removed.append(remove(path))
            continue
        with contextlib.suppress(CheckpointError):
            kind = read_commit(path).kind
            if kind == EPHEMERAL and counted >= FEWEST_KEPT:
                removed.append(remove(path))
                continue
            if path not in verified:
                verify(path)
                verified.add(path)
            counted += 1
            permanent += kind == PERMANENT
    return removed


def remove(path: Path) -> Path:
    """Remove a checkpoint. Renamed first: a removal that dies half-way must not look like a corrupt checkpoint."""
    gone = path.with_name(f"{REMOVED}{path.name}-{secrets.token_hex(4)}")
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)
    return path


def sweep(folder: Path) -> None:
    """Remove what dead saves and dead removals left. Only for the holder of the run folder's lease."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if path.name.startswith((UNFINISHED, REMOVED)):
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Standing:
    """A checkpoint and how it stands. `reason`: why it does not verify, or nothing."""

    path: Path
    step: int
    kind: str
    ranks: int
    bytes: int
    reason: str

    def __str__(self) -> str:
        if self.reason:
            return f"{self.path.name}  corrupt: {self.reason}"
        return f"{self.path.name}  {self.kind}, {self.ranks} ranks, {self.bytes / 1e6:.1f} MB, verified"


def standings(folder: Path) -> list[Standing]:
    """Every checkpoint below `folder`, newest first, read back from disk."""
    found = []
    for step, path in step_folders(folder):
        try:
            commit = read_commit(path)
            verify(path, from_disk=True)
        except CheckpointError as error:
            found.append(Standing(path, step, "", 0, 0, str(error)))
            continue
        size = sum(file.size for file in commit.files.values())
        found.append(Standing(path, step, commit.kind, commit.ranks, size, ""))
    return found
