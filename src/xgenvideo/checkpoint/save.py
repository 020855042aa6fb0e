"""Saving: hashes from memory, a temporary folder, fsync of files and folder, commit record last, rename.

A save that dies at any instant, on any rank, leaves a folder that no reader takes for a checkpoint; the one before
stays the newest. One rank or many, now or in the background: the same code.
"""

import contextlib
import json
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from torch.distributed.checkpoint.storage import WriteResult

from xgenvideo.checkpoint.files import replace_synced, sync_folder, write_synced
from xgenvideo.checkpoint.lease import Lease
from xgenvideo.checkpoint.load import verify
from xgenvideo.checkpoint.plan import SavePlans
from xgenvideo.checkpoint.ranks import Ranks
from xgenvideo.checkpoint.retention import UNFINISHED, retain, sweep
from xgenvideo.checkpoint.snapshot import (
    COMMIT,
    CONFIG,
    PERMANENT,
    STATE,
    Commit,
    Listed,
    Snapshot,
    flat_tensors,
    folder_name,
)
from xgenvideo.checkpoint.writer import ShardWriter
from xgenvideo.errors import CheckpointError

__all__ = ["Staged", "replace_synced", "retain", "save", "stage", "sweep", "sync_folder", "write_staged"]


@dataclass(frozen=True)
class Staged:
    """A snapshot that training can no longer change: its tensors are in `plans`, the rest is text."""

    step: int
    kind: str
    plans: SavePlans
    config: bytes
    state: bytes


def save(folder: Path, snapshot: Snapshot, keep: int, lease: Lease | None = None, ranks: Ranks | None = None) -> Path:
    """Write `snapshot` as folder/step-NNNNNNNN and wait for it; drop what `retain` says of `keep`.

    Returns the new folder. With a lease, nothing is published once another job has taken it over.
    Raises CheckpointError: a verified checkpoint of this step is there already, or the disk refuses.
    """
    ranks = ranks or Ranks(0, 1, None)
    staged = stage(snapshot, PERMANENT, SavePlans(flat_tensors(snapshot, ranks.rank), ranks), ranks)
    path = write_staged(folder, staged, lease, ranks)
    if ranks.rank == 0:
        retain(folder, keep)
    return path


def stage(snapshot: Snapshot, kind: str, plans: SavePlans, ranks: Ranks) -> Staged:
    """Copy the snapshot to host memory; after this, training may go on."""
    plans.stage(flat_tensors(snapshot, ranks.rank))
    state = json.dumps(snapshot.state | {"step": snapshot.step}, indent=2) + "\n"
    return Staged(snapshot.step, kind, plans, snapshot.config.to_json().encode(), state.encode())


def write_staged(folder: Path, staged: Staged, lease: Lease | None, ranks: Ranks) -> Path:
    """Write and commit with all ranks; rank 0 has the lease. Raises CheckpointError on all of them, or on none."""
    path, save_id = folder / folder_name(staged.step), ""
    try:
        save_id = ranks.together(lambda: staged.step, lambda steps: [_begin(path, steps)] * ranks.size)
        temporary = _temporary(path, save_id)
        writer = ShardWriter(temporary, ranks.rank, ranks.size, staged.step, save_id)

        def write() -> list[WriteResult]:
            return writer.write_data(staged.plans.own, staged.plans.planner).wait()

        def commit(results: list[list[WriteResult]]) -> list[None]:
            writer.finish(staged.plans.metadata, results)
            _commit(path, temporary, staged, writer, lease, ranks.size)
            return [None] * ranks.size

        ranks.together(write, commit)
    except (CheckpointError, OSError) as error:
        if ranks.rank == 0 and save_id:
            shutil.rmtree(_temporary(path, save_id), ignore_errors=True)
        cure = "free some space or mend the disk, then run again: earlier checkpoints are as they were"
        raise CheckpointError(f"{path}: cannot be saved ({error}); {cure}") from error
    return path


def _begin(path: Path, steps: list[int]) -> str:
    """Rank 0: the id of the save, and its folder, under a name that no reader takes for a checkpoint."""
    if len(set(steps)) > 1:
        raise CheckpointError(f"the ranks are at different steps: {sorted(set(steps))}")
    save_id = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(8)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    _temporary(path, save_id).mkdir()
    return save_id


def _temporary(path: Path, save_id: str) -> Path:
    return path.with_name(f"{UNFINISHED}{path.name}-{save_id.rpartition('-')[2]}")


def _commit(path: Path, temporary: Path, staged: Staged, writer: ShardWriter, lease: Lease | None, ranks: int) -> None:
    """Rank 0, once every rank has written: config, state, the commit record last, then one rename."""
    files = {CONFIG: staged.config, STATE: staged.state}
    for name, content in files.items():
        write_synced(temporary / name, content)
    listed = writer.files | {name: Listed.of(content) for name, content in files.items()}
    token = lease.token if lease is not None else 0
    commit = Commit(staged.step, writer.save_id, ranks, staged.kind, token, listed)
    write_synced(temporary / COMMIT, commit.text().encode())
    sync_folder(temporary)
    if lease is not None:
        lease.check()
    _move_aside(path)
    os.rename(temporary, path)
    sync_folder(path.parent)


def _move_aside(path: Path) -> None:
    """Free the name `path` when what has it fails to verify; it is kept under another name, never overwritten."""
    if not path.exists():
        return
    with contextlib.suppress(CheckpointError):
        verify(path)
        raise FileExistsError("it exists and verifies; a checkpoint is never overwritten")
    os.rename(path, path.with_name(f"corrupt-{path.name}-{secrets.token_hex(4)}"))
