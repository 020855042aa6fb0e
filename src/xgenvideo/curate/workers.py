"""Child processes that decode strangers' videos: a crash, a hang or a memory bomb costs that one file, not the run."""

import json
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from xgenvideo.data.confined import start_child
from xgenvideo.errors import DataError

GRACE_SECONDS = 5.0


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    answers: IO[bytes]
    job: str | None = None
    deadline: float = 0.0


class DecodePool:
    """A fixed number of `decode_child.py` processes, restarted when they die. Use as a context manager."""

    def __init__(self, processes: int, seconds: float, memory_mb: int) -> None:
        self.seconds, self.memory_mb, self.restarts = seconds, memory_mb, 0
        self._selector = selectors.DefaultSelector()
        self._children = [self._start() for _ in range(processes)]

    def __enter__(self) -> "DecodePool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:
            self._stop(child)
        self._selector.close()

    @property
    def pids(self) -> list[int]:
        """Process numbers of the children."""
        return [child.process.pid for child in self._children]

    def _start(self) -> _Child:
        process = start_child("xgenvideo.curate.decode_child", self.memory_mb)
        assert process.stdout is not None
        child = _Child(process, process.stdout)
        self._selector.register(child.answers, selectors.EVENT_READ, child)
        return child

    def _stop(self, child: _Child) -> None:
        self._selector.unregister(child.answers)
        child.process.kill()
        child.process.wait()
        child.answers.close()
        if child.process.stdin is not None:
            with suppress(BrokenPipeError):  # what was left to send to a dead child
                child.process.stdin.close()

    def run(self, jobs: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Answers in the order they are done. An answer is what the child returned, or {"reason": ...} if it died."""
        waiting = deque(jobs)
        while waiting or any(child.job for child in self._children):
            for child in self._children:
                if child.job is None and waiting:
                    self._send(child, *waiting.popleft())
            busy = [child.deadline for child in self._children if child.job]
            timeout = max(0.0, min(busy, default=0.0) - time.monotonic())
            for key, _ in self._selector.select(timeout):
                if key.data.job is not None:
                    yield self._receive(key.data)
            yield from self._give_up()

    def _send(self, child: _Child, name: str, job: dict[str, Any]) -> None:
        child.job, child.deadline = name, time.monotonic() + self.seconds + GRACE_SECONDS
        assert child.process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead: its closed output is read next
            child.process.stdin.write(json.dumps(job | {"seconds": self.seconds}).encode() + b"\n")
            child.process.stdin.flush()

    def _receive(self, child: _Child) -> tuple[str, dict[str, Any]]:
        line = child.answers.readline()
        name, child.job = str(child.job), None
        if line.endswith(b"\n"):
            answer: dict[str, Any] = json.loads(line)
            if "unwritable" in answer:
                raise unwritable(answer["unwritable"])
            return name, answer
        code = child.process.wait()
        self._replace(child)
        # The child sets an alarm for itself, which also works when the decoder never comes back to Python.
        reason = "decode_timeout" if code == -14 else "decoder_crashed"
        return name, {"reason": reason, "detail": f"the decoder ended with code {code}"}

    def _give_up(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for child in list(self._children):
            if child.job is not None and time.monotonic() > child.deadline:
                name = child.job
                self._replace(child)
                yield name, {"reason": "decode_timeout", "detail": f"more than {self.seconds:.0f} s"}

    def _replace(self, child: _Child) -> None:
        self._stop(child)
        self.restarts += 1
        self._children[self._children.index(child)] = self._start()


def unwritable(why: object) -> DataError:
    """What is raised where the work folder's disk is full: never a verdict on an input."""
    return DataError(f"the work folder cannot be written ({why}); mend that and run again: what is done stays")
