"""Reading strangers' videos in child processes, window by window: `Decoders.windows` for `video.sample_windows`."""

import json
import os
import queue
import select
import signal
import subprocess
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from xgenvideo.data.confined import start_child
from xgenvideo.data.video import MAX_PIXELS
from xgenvideo.errors import MediaError
from xgenvideo.records import SampledVideo

POLL_MS = 50
PIECE = 2**20


class Stopped(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Bounds:
    """What one video may cost: its length, its picture size, processor time and address space of its decoder."""

    max_seconds: float = 1e9
    max_pixels: int = MAX_PIXELS
    cpu_seconds: float = 3600.0
    memory_mb: int = 3072


class Decoders:
    """At most `processes` children (`window_child.py`), started when needed, replaced when they die.

    Threads may share it: each call has a child to itself. Use as a context manager, or call `close`.
    """

    def __init__(self, processes: int, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self._idle: queue.Queue[_Child | None] = queue.Queue()
        for _ in range(processes):
            self._idle.put(None)
        self._processes = processes

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the children. Waits for the calls that are under way."""
        for _ in range(self._processes):
            if (child := self._idle.get()) is not None:
                child.kill()

    def windows(
        self,
        path: Path,
        fps: float = 2.0,
        frames: int = 64,
        short_side: int | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[SampledVideo]:
        """As `sample_windows`, read by a child, which waits while nobody takes the next window.

        Raises MediaError, with the reason `too_long`, `decode_timeout` or `decoder_crashed` too; Stopped once `stop` is
        set.
        """
        bounds = {name: getattr(self.bounds, name) for name in ("max_seconds", "max_pixels", "cpu_seconds")}
        job = {"path": str(Path(path).absolute()), "fps": fps, "frames": frames, "short_side": short_side} | bounds
        taken, child = self._idle.get(), None
        try:
            child = taken if taken is not None and taken.alive else _Child(self.bounds.memory_mb)
            last = yield from child.run(job, stop or threading.Event())
        except (MediaError, Stopped, GeneratorExit):
            # What it was doing is cut short, so its next words would be of this job.
            if child is not None:
                child.kill()
            child = None
            raise
        finally:
            self._idle.put(child)
        if last:
            raise MediaError(str(last["reason"]), path, str(last["detail"]))


class _Child:
    """One process and what it has said."""

    def __init__(self, memory_mb: int) -> None:
        self._process: subprocess.Popen[bytes] = start_child("xgenvideo.data.window_child", memory_mb)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._jobs, self._answers = self._process.stdin, self._process.stdout
        self._said = bytearray()
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def run(self, job: dict[str, Any], stop: threading.Event) -> Generator[SampledVideo, None, dict[str, Any]]:
        """Windows of a job; returns its last line: {} or a reason."""
        with suppress(BrokenPipeError):  # it is dead: its closed output is read next
            self._jobs.write(json.dumps(job).encode() + b"\n")
            self._jobs.flush()
        while True:
            about: dict[str, Any] = json.loads(self._line(job, stop))
            if "shape" not in about:
                return about
            shape = tuple(about["shape"])
            frames = np.frombuffer(self._take(int(np.prod(shape)), job, stop), np.uint8).reshape(shape)
            yield SampledVideo(frames, np.array(about["pts"]), np.array(about["indices"]), about["seconds"])

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()
        self._answers.close()
        with suppress(BrokenPipeError):  # what was left to send to a dead child
            self._jobs.close()

    def _line(self, job: dict[str, Any], stop: threading.Event) -> bytes:
        seen = 0
        while (end := self._said.find(b"\n", seen)) < 0:
            seen = len(self._said)
            self._hear(job, stop)
        return self._take(end + 1, job, stop)

    def _take(self, count: int, job: dict[str, Any], stop: threading.Event) -> bytes:
        while len(self._said) < count:
            self._hear(job, stop)
        taken = bytes(memoryview(self._said)[:count])
        del self._said[:count]
        return taken

    def _hear(self, job: dict[str, Any], stop: threading.Event) -> None:
        """Wait for more. Raises Stopped, or MediaError when the child is dead."""
        while not self._poll.poll(POLL_MS):
            if stop.is_set():
                raise Stopped
        if stop.is_set():
            raise Stopped
        piece = os.read(self._answers.fileno(), PIECE)
        if not piece:
            code = self._process.wait()
            if code == -signal.SIGPROF:
                raise MediaError("decode_timeout", job["path"], f"more than {job['cpu_seconds']:g} s of processor time")
            raise MediaError("decoder_crashed", job["path"], f"the decoder ended with code {code}")
        self._said += piece
