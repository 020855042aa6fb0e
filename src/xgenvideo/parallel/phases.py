"""Where a rank is in its step, and how long it was in each phase: for the log, the slow-rank report, the watchdog."""

import time
from collections import defaultdict

import torch

# Phases in which a rank works alone; in every other it may be waiting for the others.
OWN_WORK = ("load", "encode")
SAVING = "save"


class Phases:
    """The phase that a rank is in. `enter` costs a clock reading, on a GPU an event; nothing waits for the device."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.step, self.name, self.entered = 0, "start", time.monotonic()
        self.order: list[str] = ["start"]
        self.held_out = 0
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._timed = device is not None and device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)

    def __repr__(self) -> str:
        return f"Phases(step={self.step}, {self.name} for {time.monotonic() - self.entered:.1f} s)"

    def enter(self, name: str) -> None:
        """The rank leaves its phase and enters `name`."""
        now = time.monotonic()
        if self._timed:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((name, event))
        else:
            self._seconds[self.name] += now - self.entered
        if name not in self.order:
            self.order.append(name)
        self.name, self.entered = name, now

    def next_step(self) -> None:
        """A step is done."""
        self.step += 1
        self.enter("between steps")

    def next_held_out(self) -> None:
        """A batch of held-out pairs is done: no step, but a sign of life."""
        self.held_out += 1

    def take(self) -> dict[str, float]:
        """Seconds in each phase since the last call. On a GPU the caller has waited for the device already."""
        for (name, begin), (_, end) in zip(self._events, self._events[1:], strict=False):
            self._seconds[name] += begin.elapsed_time(end) / 1e3
        self._events = self._events[-1:]
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken
