"""Processes that make batches ahead, over torch's DataLoader. One that dies or hangs is replaced and nothing is lost: a
batch is a pure function of its position, so the next process makes it again.
"""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from xgenvideo.data.making import BatchMaker, Made
from xgenvideo.errors import DataError, XGenVideoError

RESTARTS = 5
AHEAD_OF_EACH = 2


class Workers:
    """`data.workers` processes of one rank. Called from the loader's thread, batch after batch."""

    def __init__(self, maker: BatchMaker) -> None:
        self.maker, self.config = maker, maker.config
        self._batches: Iterator[Made | str] | None = None
        self._next, self._pairs = 0, maker.config.train.global_batch_pairs

    def make(self, first: int) -> Made:
        """As BatchMaker.make. Raises DataError too when processes die or hang RESTARTS times in a row."""
        reasons: list[str] = []
        while len(reasons) <= RESTARTS:
            if self._batches is None or self._next != first:
                self._start(first)
            assert self._batches is not None, "just started"
            try:
                made = self._wait(self._batches)
            except (RuntimeError, OSError, EOFError) as error:  # a dead process may be noticed as a broken pipe
                reasons.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])
                print(f"loader: {reasons[-1]}; its processes are started again", file=sys.stderr, flush=True)
                self.close()
                continue
            if isinstance(made, str):
                raise DataError(made)
            self._next = first + self._pairs
            return made
        cure = "look for what kills them (memory?), or set data.workers=0"
        raise DataError(
            f"data.workers = {self.config.data.workers}: failed {len(reasons)} times ({reasons[-1]}); {cure}"
        )

    def _wait(self, batches: Iterator[Made | str]) -> Made | str:
        """The next batch. DataLoader's own time-out does not see a process that hangs while it hands over a tensor, so
        those that take too long are killed, which breaks the pipe that this thread waits at.
        """
        seconds = self.config.data.worker_timeout_seconds
        alarm = threading.Timer(seconds, kill, [batches])
        alarm.daemon = True
        alarm.start()
        try:
            return next(batches)
        finally:
            alarm.cancel()

    def close(self) -> None:
        """End the processes, those too that hang: they hold nothing that cannot be made again."""
        kill(self._batches)
        self._batches = None

    def _start(self, first: int) -> None:
        """Processes that begin with the batch at `first`."""
        self.close()
        self._next = first
        # The server that processes are forked from imports what they need once: another one starts in milliseconds.
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        # torch's handler for a child's death raises in the main thread, wherever that is; not from this thread.
        loader: DataLoader[Any] = DataLoader(
            Batches(self.maker),
            sampler=Positions(first, self._pairs),
            batch_size=None,
            num_workers=self.config.data.workers,
            prefetch_factor=AHEAD_OF_EACH,
            multiprocessing_context="forkserver",
            worker_init_fn=begin,
            collate_fn=unchanged,
        )
        self._batches = iter(loader)


class Batches(Dataset[Any]):
    """Batches by position; what is wrong with the data comes back as its sentence."""

    def __init__(self, maker: BatchMaker) -> None:
        self.maker = maker

    def __getitem__(self, first: int) -> Made | str:
        try:
            return self.maker.make(first)
        except XGenVideoError as error:
            return str(error)


class Positions:
    """Positions of one global batch after the other, without end."""

    def __init__(self, first: int, pairs: int) -> None:
        self.first, self.pairs = first, pairs

    def __iter__(self) -> Iterator[int]:
        position = self.first
        while True:
            yield position
            position += self.pairs


def kill(batches: object) -> None:
    """End the processes behind a DataLoader's iterator."""
    for process in getattr(batches, "_workers", ()):
        process.kill()


def begin(number: int) -> None:
    """One thread each, and a stop is the trainer's to hear: a Ctrl-C reaches every process of the terminal."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for stop in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(stop, signal.SIG_IGN)


def unchanged(made: Any) -> Any:
    """A batch is whole already."""
    return made
