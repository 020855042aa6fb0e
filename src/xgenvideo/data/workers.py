"""Processes that make batches ahead, over torch's DataLoader. One that dies or hangs is replaced and nothing is lost: a
batch is a pure function of its position, so the next process makes it again. Videos are written where the trainer reads
them, in memory that both have mapped; the rest of a batch comes as a message.
"""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from xgenvideo.data.buffers import Buffers, make_buffers
from xgenvideo.data.making import BatchMaker, Made
from xgenvideo.errors import DataError, XGenVideoError

RESTARTS = 5
AHEAD_OF_EACH = 2
Handed = tuple[Made | str, int | None]  # a batch or what is wrong with the data, and the buffer that was given for it


class Workers:
    """`data.workers` processes of one rank. Called from the loader's thread, batch after batch; `kept` of these wait or
    are in use.
    """

    def __init__(self, maker: BatchMaker, kept: int) -> None:
        self.maker, self.config, self.kept = maker, maker.config, kept
        self._batches: Iterator[Handed] | None = None
        self._buffers: Buffers | None = None
        self._next, self._pairs = 0, maker.config.train.global_batch_pairs

    def make(self, first: int) -> Made:
        """As BatchMaker.make. Raises DataError too when processes die or hang RESTARTS times in a row."""
        reasons: list[str] = []
        while len(reasons) <= RESTARTS:
            if self._batches is None or self._next != first:
                self._start(first)
            assert self._batches is not None, "just started"
            try:
                made, number = self._wait(self._batches)
            except (RuntimeError, OSError, EOFError) as error:  # a dead process may be noticed as a broken pipe
                reasons.append(" ".join(f"{type(error).__name__}: {error}".split())[:200])
                print(f"loader: {reasons[-1]}; its processes are started again", file=sys.stderr, flush=True)
                self.close()
                continue
            if isinstance(made, str):
                self.close()  # those made ahead belong to later positions than the next one asked for
                raise DataError(made)
            self._next = first + self._pairs
            return made if number is None else self._mapped(made, number)
        cure = "look for what kills them (memory?), or set data.workers=0"
        raise DataError(
            f"data.workers = {self.config.data.workers}: failed {len(reasons)} times ({reasons[-1]}); {cure}"
        )

    def _mapped(self, made: Made, number: int) -> Made:
        """A batch with its video, where that lies in a buffer, which is free again after it."""
        assert self._buffers is not None, f"buffer {number} was given"
        buffer, video = self._buffers.last_tensor(number), made.batch.video
        if not video.is_meta:
            return made
        video = buffer[: video.nbytes].view(video.dtype).view(video.shape)
        return replace(made, batch=made.batch.with_video(video))

    def _wait(self, batches: Iterator[Handed]) -> Handed:
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
        self._batches = self._buffers = None

    def _start(self, first: int) -> None:
        """Processes that begin with the batch at `first`."""
        self.close()
        self._next = first
        # Never those of the processes before, which may still be writing.
        count = self.config.data.workers * AHEAD_OF_EACH + self.kept
        self._buffers = buffers = make_buffers(count, self.maker.largest_bytes)
        # The server that processes are forked from imports what they need once: another one starts in milliseconds.
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        # torch's handler for a child's death raises in the main thread, wherever that is; not from this thread.
        loader: DataLoader[Any] = DataLoader(
            Batches(self.maker, buffers),
            sampler=Positions(first, self._pairs, buffers),
            batch_size=None,
            num_workers=self.config.data.workers,
            prefetch_factor=AHEAD_OF_EACH,
            multiprocessing_context="forkserver",
            worker_init_fn=begin,
            collate_fn=unchanged,
        )
        self._batches = iter(loader)
        buffers.close_file()


class Batches(Dataset[Any]):
    """Batches by position; what is wrong with the data comes back as its sentence."""

    def __init__(self, maker: BatchMaker, buffers: Buffers) -> None:
        self.maker, self.buffers = maker, buffers

    def __getitem__(self, asked: tuple[int, int | None]) -> Handed:
        first, number = asked
        buffer = None if number is None else self.buffers.tensor(number)
        try:
            made = self.maker.make(first, buffer)
        except XGenVideoError as error:
            return str(error), number
        video = made.batch.video
        if buffer is not None and video.data_ptr() == buffer.data_ptr():
            made = replace(made, batch=made.batch.with_video(video.to("meta")))  # its shape is enough
        return made, number


class Positions:
    """Positions of one global batch after the other, without end, each with a buffer if one is free."""

    def __init__(self, first: int, pairs: int, buffers: Buffers) -> None:
        self.first, self.pairs, self.buffers = first, pairs, buffers

    def __iter__(self) -> Iterator[tuple[int, int | None]]:
        position = self.first
        while True:
            yield position, self.buffers.lend()
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
