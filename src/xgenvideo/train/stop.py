"""Stopping well: a signal or the wall-clock limit lets the step end, saves, and tells by the exit code why.

| exit code | why                                                                     |
|-----------|-------------------------------------------------------------------------|
| 0         | every step of the recipe is done                                        |
| 130       | SIGINT (Ctrl-C): saved                                                  |
| 143       | SIGTERM: saved                                                          |
| 138       | SIGUSR1, Slurm's warning before the time limit: saved                   |
| 75        | safety.wall_clock_minutes are over: saved                               |
| 76        | a rank hung (parallel/watchdog.py): not saved                           |
| 1, 2      | an error, told in one line: of the run, of a setting                    |

After 75, 130, 138 and 143 the same command goes on. A second SIGINT or SIGTERM exits at once with the same code. Ranks
under torchrun end with 0 once they have saved, as torchrun would start them again after any other code; why they
stopped is in RUN/stopped.json, and `xgv train --processes` exits with the code of this table.
"""

import json
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from xgenvideo.checkpoint.save import replace_synced

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
EXIT_WALL_CLOCK = 75
STOPPED = "stopped.json"
# A scheduler signals a launcher and its ranks, and the launcher its ranks again: that is one wish to stop, not two.
SAME_WISH_SECONDS = 2.0


@dataclass(frozen=True)
class Stop:
    """Why a run ends before its last step, and what the process then exits with."""

    reason: str
    exit_code: int

    @staticmethod
    def by_signal(number: int) -> "Stop":
        """After a signal, with the shell's exit code."""
        return Stop(signal.Signals(number).name, 128 + number)

    def leave(self, out: Path, step: int, first: bool) -> None:
        """End the process; on the first rank write down why. Raises SystemExit."""
        if first:
            replace_synced(out / STOPPED, json.dumps(asdict(self) | {"step": step}).encode())
        raise SystemExit(0 if "TORCHELASTIC_RUN_ID" in os.environ else self.exit_code)


def stop_of(out: Path) -> Stop | None:
    """Why the last try of the run `out` stopped before its end, if it did."""
    try:
        said = json.loads((out / STOPPED).read_text(encoding="utf-8"))
        return Stop(str(said["reason"]), int(said["exit_code"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class StopSignals:
    """While entered, remembers a signal in `caught`. Outside the main thread it changes nothing (Python's rule)."""

    def __init__(self) -> None:
        self.caught: signal.Signals | None = None
        self._caught_at = 0.0
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

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught is None:
            self.caught, self._caught_at = signal.Signals(number), time.monotonic()
            return
        launched = "TORCHELASTIC_RUN_ID" in os.environ
        if number == signal.SIGUSR1 or (launched and time.monotonic() - self._caught_at < SAME_WISH_SECONDS):
            return
        # No cleanup: a checkpoint survives a death at any instant.
        os._exit(128 + number)
