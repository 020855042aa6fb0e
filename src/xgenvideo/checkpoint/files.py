"""Files that survive a crash: written new or renamed into place, always fsynced."""

import os
import secrets
from collections.abc import Iterable
from pathlib import Path


def write_synced(path: Path, content: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a new file, whole or in pieces, and wait until it is on disk; an existing one is never opened."""
    # Unbuffered: a write that the disk refuses fails here, and nothing is left to be flushed when the file is closed.
    with open(path, "xb", buffering=0) as file:
        for piece in (content,) if isinstance(content, bytes) else content:
            rest = memoryview(piece)
            while rest:
                # The system may write less than it was given (2 GiB at most on Linux).
                rest = rest[file.write(rest) or 0 :]
        os.fsync(file.fileno())


def replace_synced(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader, even after a crash, sees the old content or the new, never a half."""
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        write_synced(temporary, content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
