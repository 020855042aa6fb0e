"""The ranks that train together, as one object. Today it is one process; losses receive `gather` from here."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class World:
    """Rank and number of ranks. With one rank, gathering and summing are the identity."""

    rank: int = 0
    size: int = 1

    def gather(self, tensor: Tensor) -> Tensor:
        """tensor [N ..] of every rank -> [size*N ..], in the order of ranks, differentiable."""
        assert self.size == 1, f"a world of {self.size} ranks needs a process group"
        return tensor

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of every rank's tensor."""
        assert self.size == 1, f"a world of {self.size} ranks needs a process group"
        return tensor
