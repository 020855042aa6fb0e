"""One writer a run directory: a lock that the kernel drops when its process ends, however it ends."""

import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from xgenvideo.errors import TrainError


class Lease:
    """Held while entered. Raises TrainError naming host and process of the one who holds it."""

    def __init__(self, run: Path) -> None:
        self.path = run / "LEASE"
        self._file = -1

    def __enter__(self) -> "Lease":
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 4096).decode(errors="replace") or "another process"
            os.close(self._file)
            raise TrainError(
                f"{self.path.parent}: is in use by {holder}; stop that run first, or choose another --out"
            ) from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
