"""One writer a run folder: a locked file that names the host and the process, with a fencing token.

The kernel drops the lock when its process dies, however it dies, so a lease never has to be removed by hand.
"""

import fcntl
import json
import os
import platform
from pathlib import Path
from types import TracebackType
from typing import Any

from xgenvideo.errors import CheckpointError, TrainError

LEASE = "lease.json"


class Lease:
    """The right to write into a run folder, held until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int, token: int) -> None:
        self.path, self.token = path, token
        self._descriptor = descriptor

    def __repr__(self) -> str:
        return f"Lease({self.path}, token={self.token})"

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def check(self) -> None:
        """Raise CheckpointError if another job has taken the lease since: on file systems whose locks do not reach
        other hosts, the token still tells.
        """
        holder = _holder(self.path)
        if holder.get("token") != self.token:
            raise CheckpointError(f"{self.path}: this job's lease {self.token} was taken over by {_named(holder)}")

    def release(self) -> None:
        """Give the lease back. The file stays, for its token."""
        os.close(self._descriptor)


def take_lease(folder: Path) -> Lease:
    """Take the lease of a run folder, which is made if need be. Raises TrainError naming the job that has it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LEASE
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        cure = "wait for it, stop it, or give another --out"
        raise TrainError(f"--out {folder}: is in use by {_named(_holder(path))}; {cure}") from None
    except OSError as error:
        os.close(descriptor)
        cure = "use a file system with flock (Lustre: mount with -o flock)"
        raise TrainError(f"{path}: cannot be locked ({error}); {cure}") from error
    before = _holder(path).get("token")
    token = before + 1 if isinstance(before, int) else 1
    text = json.dumps({"host": platform.node(), "pid": os.getpid(), "token": token}) + "\n"
    # Written in place: the lock belongs to this very file, a renamed one would be another.
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
    os.fsync(descriptor)
    return Lease(path, descriptor, token)


def _holder(path: Path) -> dict[str, Any]:
    """What the lease file says; nothing where it is empty or half-written."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
