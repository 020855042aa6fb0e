"""Copies of checkpoints anywhere that fsspec reaches. An object store has no rename: the commit record goes last, and a
folder without one is no checkpoint.
"""

import secrets
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from xgenvideo.checkpoint.files import sync_folder, write_synced
from xgenvideo.checkpoint.load import verify
from xgenvideo.checkpoint.retention import UNFINISHED
from xgenvideo.checkpoint.snapshot import COMMIT, STEP_FOLDER, read_commit
from xgenvideo.errors import CheckpointError, MissingExtra


def push(path: Path, url: str) -> str:
    """Copy the checkpoint folder `path` below `url`; one that is there already is left. Returns where it is.

    Raises CheckpointError when the place cannot be written.
    """
    system, root = _open(url)
    target = f"{root}/{path.name}"
    try:
        if system.exists(f"{target}/{COMMIT}"):
            return target
        system.makedirs(target, exist_ok=True)
        for name in [*sorted(read_commit(path).files), COMMIT]:
            system.put_file(str(path / name), f"{target}/{name}")
    except (OSError, ValueError) as error:
        cure = "check the address and the credentials; the checkpoint itself is safe where it is"
        raise CheckpointError(f"{path}: cannot be copied to {url} ({error}); {cure}") from error
    return target


def pull(url: str, folder: Path) -> list[Path]:
    """Bring the checkpoints below `url` that `folder` does not have; returns what came, newest first.

    Each is verified before it gets its name. Raises CheckpointError: nothing there, or a copy that does not verify.
    """
    system, root = _open(url)
    try:
        names = sorted({PurePosixPath(str(name)).name for name in system.ls(root, detail=False)}, reverse=True)
        names = [name for name in names if STEP_FOLDER.fullmatch(name) and system.exists(f"{root}/{name}/{COMMIT}")]
    except OSError as error:
        raise CheckpointError(f"{url}: cannot be read ({error})") from error
    if not names:
        raise CheckpointError(f"{url}: holds no committed checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    return [_fetch(system, f"{root}/{name}", folder / name) for name in names if not (folder / name).exists()]


def _fetch(system: Any, source: str, path: Path) -> Path:
    # Under its own name, which its commit record has too, in a folder that no reader looks into.
    outer = path.with_name(f"{UNFINISHED}{path.name}-{secrets.token_hex(8)}")
    temporary = outer / path.name
    temporary.mkdir(parents=True)
    try:
        write_synced(temporary / COMMIT, system.cat_file(f"{source}/{COMMIT}"))
        for name in read_commit(temporary).files:
            system.get_file(f"{source}/{name}", str(temporary / name))
        verify(temporary, from_disk=True)
        sync_folder(temporary)
        temporary.rename(path)
        sync_folder(path.parent)
    except (OSError, CheckpointError) as error:
        raise CheckpointError(f"{source}: cannot be brought ({error})") from error
    finally:
        shutil.rmtree(outer, ignore_errors=True)
    return path


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL or a plain path, and the path in it."""
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise MissingExtra("fsspec", "remote") from error
    try:
        system, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        cure = "give a folder, or a URL of a file system whose fsspec package is installed"
        raise CheckpointError(f"{url}: no such file system ({error}); {cure}") from error
    return system, str(root).rstrip("/")
