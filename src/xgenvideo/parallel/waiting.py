"""How long a rank waits inside its pipeline: the time in which its schedule runs, less that in which it computes."""

import contextlib
import time
from collections.abc import Iterator

import torch


class Waiting:
    """Adds up this rank's waiting. A span costs two clock readings, on a GPU two events; nothing waits for the device.

    What happens while a stage computes is no waiting here, tensor-parallel collectives and gradient sums included.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._timed = device is not None and device.type == "cuda"
        self._events: list[tuple[float, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds = 0.0

    def __repr__(self) -> str:
        return f"Waiting({self._seconds:.3f} s, {len(self._events)} spans to be read)"

    def running(self) -> contextlib.AbstractContextManager[None]:
        """Around everything that the schedule does."""
        return self._span(1.0)

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """Around the work of a stage on a microbatch, inside `running`."""
        return self._span(-1.0)

    @contextlib.contextmanager
    def _span(self, sign: float) -> Iterator[None]:
        if self._timed:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((sign, begin, end))
            return
        begun = time.perf_counter()
        yield
        self._seconds += sign * (time.perf_counter() - begun)

    def take(self) -> float:
        """Seconds waited since the last call. On a GPU the caller has waited for the device already."""
        seconds = self._seconds
        for sign, begin, end in self._events:
            seconds += sign * begin.elapsed_time(end) / 1e3
        self._seconds = 0.0
        self._events.clear()
        return max(0.0, seconds)
