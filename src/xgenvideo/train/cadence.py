"""When a run saves and when it stops: after each step, the same answer on every rank."""

import time
from dataclasses import dataclass

import torch

from xgenvideo.checkpoint import EPHEMERAL, PERMANENT
from xgenvideo.config import RunConfig
from xgenvideo.parallel.world import World
from xgenvideo.train.stop import EXIT_WALL_CLOCK, Stop, StopSignals


@dataclass(frozen=True)
class Due:
    """What to do now. `save`: the kind of checkpoint to write, or ""; `stop`: why the run ends here, or None."""

    save: str
    stop: Stop | None


class Cadence:
    """Permanent checkpoints by steps, ephemeral ones by the clock; stops by signal or wall-clock limit."""

    def __init__(self, config: RunConfig, world: World, began: float) -> None:
        """`began`: when the program started, as time.monotonic() counts."""
        self.config, self.world, self._began = config, world, began
        self._saved = time.monotonic()

    @property
    def last_step(self) -> int:
        """The step after which this call of the program ends."""
        train = self.config.train
        return min(train.steps, train.stop_after_steps or train.steps)

    def after(self, step: int, signals: StopSignals) -> Due:
        """What is due after `step`. All ranks call it: one that heard a signal or whose time is over speaks for all."""
        safety, now = self.config.safety, time.monotonic()
        over = 0 < safety.wall_clock_minutes * 60 <= now - self._began
        late = 0 < safety.save_every_minutes * 60 <= now - self._saved
        number, over, late = self._agreed(int(signals.caught or 0), over, late)
        stop = Stop.by_signal(number) if number else None
        if stop is None and over and step < self.last_step:
            stop = Stop(f"safety.wall_clock_minutes = {safety.wall_clock_minutes:g}", EXIT_WALL_CLOCK)
        permanent = step % self.config.train.save_every_steps == 0 or step == self.last_step
        save = PERMANENT if permanent else EPHEMERAL if stop or late else ""
        if save:
            self._saved = now
        return Due(save, stop)

    def _agreed(self, number: int, over: bool, late: bool) -> tuple[int, bool, bool]:
        if self.world.size == 1:
            return number, over, late
        said = torch.tensor([number, over, late], device=self.world.device)
        number, over_of_any, late_of_any = self.world.largest(said).tolist()
        return number, bool(over_of_any), bool(late_of_any)
