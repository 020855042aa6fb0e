"""A side of a comparison in processes of its own, which are stopped while it is another's turn.

Loaders with worker processes work ahead: left running, they would take the cores from the side that is measured, and
have their own batches ready before their turn begins.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
STARTED_SECONDS, TURN_SECONDS = 120, 300


class Turn(NamedTuple):
    """Of the counted batches: wall seconds and processor seconds of all processes a frame; memory of all at the end."""

    wall: float
    busy: float
    memory_mb: float


class Side:
    """The batches that `start(*arguments)` gives, in a process group of their own; stopped but for its turns."""

    def __init__(self, start: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
        self._connection, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, start, arguments))
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Side":
        try:
            self._hear(STARTED_SECONDS)
        except BaseException:
            self._process.kill()
            raise
        os.killpg(self._group, signal.SIGSTOP)
        return self

    def __exit__(self, *error: object) -> None:
        os.killpg(self._group, signal.SIGKILL)
        self._process.join()

    @property
    def _group(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def turn(self, count: int, uncounted: int) -> Turn:
        """Measure `count` batches after `uncounted` others, the only side that runs."""
        os.killpg(self._group, signal.SIGCONT)
        try:
            self._connection.send((count, uncounted))
            return Turn(*self._hear(TURN_SECONDS))
        finally:
            os.killpg(self._group, signal.SIGSTOP)

    def _hear(self, seconds: float) -> Any:
        """An answer. Raises TimeoutError, and EOFError when the process has died."""
        if not self._connection.poll(seconds):
            raise TimeoutError(f"no answer in {seconds} s")
        return self._connection.recv()


def _serve(connection: Connection, start: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    batches = start(*arguments)
    next(batches)
    connection.send("ready")
    while True:
        count, uncounted = connection.recv()
        for _ in islice(batches, uncounted):
            pass
        wall, busy = time.perf_counter(), group_seconds()
        frames = sum(map(frames_of, islice(batches, count)))
        connection.send(((time.perf_counter() - wall) / frames, (group_seconds() - busy) / frames, group_memory_mb()))


def frames_of(batch: Any) -> int:
    """How many frames of a batch of any side are no padding."""
    return int(batch.frame_mask.sum()) if hasattr(batch, "frame_mask") else batch.present


def _of_group() -> Iterator[tuple[Path, list[str]]]:
    """Processes of this session, and the fields of /proc/PID/stat from the third on."""
    session = str(os.getsid(0))
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[3] == session:
            yield path.parent, fields


def group_seconds() -> float:
    """Processor seconds of all processes of this session, and of those they have waited for."""
    return sum(sum(map(int, fields[11:15])) for _, fields in _of_group()) / TICKS


def group_memory_mb() -> float:
    """Memory of the processes, in 10^6 bytes; each one's part of what they share."""
    total = 0
    for folder, _ in _of_group():
        try:
            held = (folder / "smaps_rollup").read_text(encoding="utf-8")
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in held.splitlines() if line.startswith("Pss:"))
    return total * 1024 / 1e6
