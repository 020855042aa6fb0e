"""Saving: temporary folder, hashes from memory, fsync of files and folder, commit record last, rename.

A save that dies at any instant leaves a folder that no reader takes for a checkpoint; the one before stays the newest.
"""

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path

import safetensors.torch

from xgenvideo.checkpoint.lease import Lease
from xgenvideo.checkpoint.load import verify
from xgenvideo.checkpoint.snapshot import COMMIT, Snapshot, commit_text, folder_name, step_folders
from xgenvideo.errors import CheckpointError

UNFINISHED, REMOVED = ".unfinished-", ".removed-"
FEWEST_KEPT = 2


def save(folder: Path, snapshot: Snapshot, keep: int, lease: Lease | None = None) -> Path:
    """Write `snapshot` as folder/step-NNNNNNNN; drop what is older than the newest `keep` (at least 2) verified ones.

    Returns the new folder. With a lease, nothing is published once another job has taken it over.
    Raises CheckpointError: a verified checkpoint of this step is there already, or the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / folder_name(snapshot.step)
    temporary = folder / f"{UNFINISHED}{path.name}-{secrets.token_hex(4)}"
    files = payloads(snapshot)
    try:
        temporary.mkdir()
        for name, content in files.items():
            write_synced(temporary / name, content)
        write_synced(temporary / COMMIT, commit_text(snapshot.step, files).encode())
        sync_folder(temporary)
        if lease is not None:
            lease.check()
        _move_aside(path)
        os.rename(temporary, path)
        sync_folder(folder)
        retain(folder, keep)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        cure = "free some space or mend the disk, then run again: earlier checkpoints are as they were"
        raise CheckpointError(f"{path}: cannot be saved ({error}); {cure}") from error
    return path


def payloads(snapshot: Snapshot) -> dict[str, bytes]:
    """The files of a checkpoint by name, as bytes in memory; COMMIT.json is not among them."""
    files = {"config.json": snapshot.config.to_json().encode()}
    for part, tensors in snapshot.tensors.items():
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        files[f"{part}.safetensors"] = safetensors.torch.save(plain)
    files["state.json"] = (json.dumps(snapshot.state | {"step": snapshot.step}, indent=2) + "\n").encode()
    return files


def retain(folder: Path, keep: int) -> list[Path]:
    """Remove what is older than the newest `keep` verified checkpoints, never fewer than 2; returns what was removed.

    Verifying reads the newest ones back, so a save that the disk garbled never costs a good older one.
    """
    removed, kept = [], 0
    for _, path in step_folders(folder):
        if kept >= max(keep, FEWEST_KEPT):
            # Renamed first: a removal that dies half-way must not look like a corrupt checkpoint.
            gone = path.with_name(f"{REMOVED}{path.name}-{secrets.token_hex(4)}")
            os.rename(path, gone)
            shutil.rmtree(gone, ignore_errors=True)
            removed.append(path)
            continue
        with contextlib.suppress(CheckpointError):
            verify(path)
            kept += 1
    return removed


def sweep(folder: Path) -> None:
    """Remove what dead saves and dead removals left. Only for the holder of the run folder's lease."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if path.name.startswith((UNFINISHED, REMOVED)):
            shutil.rmtree(path, ignore_errors=True)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until it is on disk; an existing one is never opened."""
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace_synced(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader, even after a crash, sees the old content or the new, never a half."""
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    write_synced(temporary, content)
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_aside(path: Path) -> None:
    """Free the name `path` when what has it fails to verify; it is kept under another name, never overwritten."""
    if not path.exists():
        return
    try:
        verify(path)
    except CheckpointError:
        os.rename(path, path.with_name(f"corrupt-{path.name}-{secrets.token_hex(4)}"))
        return
    raise CheckpointError(f"{path}: exists and verifies; a checkpoint is never overwritten")
