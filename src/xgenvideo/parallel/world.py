"""What one rank knows of the others. One process for now: every collective is the identity."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This rank, how many there are, and the device that it computes on."""

    rank: int
    size: int
    device: torch.device

    def gather(self, rows: Tensor) -> Tensor:
        """Rows [n ..] of this rank -> rows [n x size ..] of all ranks, in the order of the ranks."""
        assert self.size == 1, f"a world of {self.size} ranks needs a process group"
        return rows

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks."""
        assert self.size == 1, f"a world of {self.size} ranks needs a process group"
        return value


def single_process() -> World:
    """The world of a process that was not launched as one of many; its device is the first GPU where there is one."""
    return World(rank=0, size=1, device=torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
