"""Stopping well: a first SIGINT or SIGTERM lets the step end and saves, a second one exits at once.

Exit codes are the shell's: 130 after SIGINT, 143 after SIGTERM.
"""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch

from xgenvideo.parallel.world import World

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, remembers a signal in `caught`. Outside the main thread it changes nothing (Python's rule)."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self, world: World) -> None:
        """Every rank stops when any has caught a signal; called by all after each step."""
        if world.size > 1:
            number = int(world.largest(torch.tensor(self.caught or 0, device=world.device)))
            self.caught = signal.Signals(number) if number else None

    @property
    def exit_code(self) -> int:
        """What to exit with after `caught`."""
        assert self.caught is not None, "no signal was caught"
        return 128 + self.caught

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            # No cleanup: a checkpoint survives a death at any instant.
            os._exit(128 + number)
        self.caught = signal.Signals(number)
