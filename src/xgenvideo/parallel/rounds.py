"""Long work before the first step, of which each rank does its part: they meet in between, so that nobody who waits
takes it for a hang, however long it is in all.
"""

import time

import torch

from xgenvideo.parallel.world import World

LONGEST_ROUND_SECONDS = 10.0
ROUNDS_A_TIMEOUT = 20


class Rounds:
    """Called by every rank after each piece of its work with whether it is done: True once all of them are.

    Ranks that still work meet every LONGEST_ROUND_SECONDS at most, of a `timeout_seconds` that collectives have. Those
    that are done wait there for them, so that a rank whose single piece of work takes longer than that is a hang.
    """

    def __init__(self, world: World, timeout_seconds: float) -> None:
        self.world = world
        self._seconds = min(LONGEST_ROUND_SECONDS, timeout_seconds / ROUNDS_A_TIMEOUT)
        self._met = time.monotonic()

    def __call__(self, done: bool) -> bool:
        """Meet the others, unless there is work left and it is not yet time to."""
        if not done and time.monotonic() - self._met < self._seconds:
            return False
        left = self.world.largest(torch.tensor(int(not done), device=self.world.device))
        self._met = time.monotonic()
        return not int(left)
