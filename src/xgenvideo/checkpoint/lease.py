"""One writer a run folder: a locked file that names the host and the process, renewed, with a fencing token.

The kernel drops the lock when its process dies, however it dies, so a lease never has to be removed by hand. Where
locks do not reach other hosts, the beat tells whether the holder lives: the taker watches it change, so clocks that
disagree do not matter.
"""

import fcntl
import json
import os
import platform
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from xgenvideo.errors import CheckpointError, TrainError

LEASE = "lease.json"
BEAT_SECONDS = 5.0
WATCH_SECONDS = 15.0  # three beats of a holder on another host


class Lease:
    """The right to write into a run folder, held and renewed until `release` or the end of the process."""

    def __init__(self, path: Path, descriptor: int, token: int) -> None:
        self.path, self.token = path, token
        self._descriptor, self._beat = descriptor, 0
        self._ended, self._writing = threading.Event(), threading.Lock()
        self._write(released=False)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

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
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        self._write(released=True)
        os.close(self._descriptor)

    def _renew(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._write(released=False)

    def _write(self, released: bool) -> None:
        """Say who holds the lease; nothing once another holder has written, whose token must stay."""
        with self._writing:
            before = _holder(self.path).get("token")
            if isinstance(before, int) and before > self.token:
                return
            self._beat += 1
            values = {"host": platform.node(), "pid": os.getpid(), "token": self.token}
            text = json.dumps(values | {"beat": self._beat, "released": released})
            # In place: the lock belongs to this very file, a renamed one would be another. One write of a fixed length,
            # so that a reader does not meet a half.
            try:
                os.pwrite(self._descriptor, f"{text:<255}\n".encode(), 0)
                os.ftruncate(self._descriptor, 256)
                os.fsync(self._descriptor)
            except OSError:
                # A full disk: the lock still holds, and a save will tell of it.
                return


def take_lease(folder: Path, watch_seconds: float = WATCH_SECONDS) -> Lease:
    """Take the lease of a run folder, which is made if need be. Raises TrainError naming the job that has it.

    After a holder of another host that did not release it, waits `watch_seconds` for a sign of life.
    """
    path = folder / LEASE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        cure = "make it writable, or give another --out"
        raise TrainError(f"--out {folder}: cannot be written ({error}); {cure}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _watch(path, folder, watch_seconds)
    except BlockingIOError:
        os.close(descriptor)
        raise _in_use(folder, _holder(path)) from None
    except OSError as error:
        os.close(descriptor)
        cure = "use a file system with flock (Lustre: mount with -o flock)"
        raise TrainError(f"{path}: cannot be locked ({error}); {cure}") from error
    except TrainError:
        os.close(descriptor)
        raise
    before = _holder(path).get("token")
    return Lease(path, descriptor, before + 1 if isinstance(before, int) else 1)


def _watch(path: Path, folder: Path, seconds: float) -> None:
    """Raise TrainError if the last holder, of another host, is still renewing."""
    before = _holder(path)
    if not before or before.get("released") or before.get("host") in (None, platform.node()):
        return
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(0.2, seconds))
        now = _holder(path)
        if now.get("released"):
            return
        if now.get("beat") != before.get("beat"):
            raise _in_use(folder, now)


def _in_use(folder: Path, holder: dict[str, Any]) -> TrainError:
    cure = "wait for it, stop it, or give another --out"
    return TrainError(f"--out {folder}: is in use by {_named(holder)}; {cure}")


def _holder(path: Path) -> dict[str, Any]:
    """What the lease file says; nothing where it is empty or half-written."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', 'unknown')} on {holder.get('host', 'an unknown host')}"
