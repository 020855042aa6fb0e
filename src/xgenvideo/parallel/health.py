"""What only comparing ranks can find: weights that should be alike and are not, and a rank slower than the others."""

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from xgenvideo.errors import TrainError
from xgenvideo.parallel.engine import Engine
from xgenvideo.parallel.phases import OWN_WORK
from xgenvideo.parallel.world import World

HASHES = ("the frozen encoder", "the visual trunk", "the temperature", "the decoder")
NOTICEABLE = 0.05  # of a step: a rank that loads for 2 ms where others take 1 holds nobody up


def check_weights(engine: Engine, world: World, step: int) -> None:
    """Compare hashes of what ranks hold alike: the frozen encoder, the trunk and the contrastive temperature over all
    ranks, each decoder part over its data-parallel ranks, the weights as they are gathered for computing. All ranks
    call it.

    Raises TrainError naming the ranks that differ from most: memory or a link of theirs is not to be trusted.
    """
    if world.size == 1:
        return
    own = torch.stack(
        [
            hash_of(engine.model.vision),
            hash_of(engine.visual.trunk),
            _bits(engine.model.logit_scale),
            hash_of(nn.ModuleList(engine.held)),
        ]
    )
    found = torch.zeros((world.size, len(own)), dtype=torch.int64, device=world.device)
    found[world.rank] = own
    told = world.sum(found).tolist()
    wrong: dict[int, list[str]] = {}
    for number, name in enumerate(HASHES):
        for ranks in groups_of(world, everyone=number < len(HASHES) - 1):
            for rank in differing({rank: told[rank][number] for rank in ranks}):
                wrong.setdefault(rank, []).append(name)
    if wrong:
        named = "; ".join(f"rank {rank}: {', '.join(names)}" for rank, names in sorted(wrong.items()))
        cure = "test the memory of those machines; the same command goes on from the newest checkpoint"
        raise TrainError(f"step {step}: weights that ranks hold alike differ ({named}); {cure}")


def hash_of(module: nn.Module) -> Tensor:
    """One number [] for the bits of all parameters and buffers of `module`, gathered where they are sharded."""
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.unshard()
    with torch.no_grad():
        tensors = [*module.parameters(), *module.buffers()]
        hashes = [_bits(tensor) for tensor in tensors if tensor.numel()]
        total = torch.stack(hashes)
        weights = torch.arange(1, len(hashes) + 1, device=total.device)
        result = (total * weights).sum()
    for part in sharded:
        part.reshard()
    return result


def _bits(tensor: Tensor) -> Tensor:
    """A number [] in int64 of the bits of a tensor: any single flipped bit changes it."""
    local = tensor.detach()
    local = local.to_local() if isinstance(local, DTensor) else local
    return torch.hash_tensor(local.contiguous()).view(torch.int64)


def groups_of(world: World, everyone: bool) -> list[list[int]]:
    """The ranks that hold the same: all of them, or those at one place of the pipeline and tensor axes."""
    if everyone:
        return [list(range(world.size))]
    groups: dict[tuple[int, int], list[int]] = {}
    for rank in range(world.size):
        place = world.layout.place(rank)
        groups.setdefault((place.pipeline, place.tensor), []).append(rank)
    return list(groups.values())


def differing(hashes: dict[int, int]) -> list[int]:
    """The ranks whose hash is not that of most; all of them where there is no majority."""
    values = list(hashes.values())
    common = statistics.mode(values)
    if values.count(common) == len(values):
        return []
    majority = values.count(common) > len(values) / 2
    return [rank for rank, value in hashes.items() if value != common or not majority]


@dataclass(frozen=True)
class SlowRank:
    """The rank whose own work (loading and encoding) took longest. `seconds` and the `median` rank's, of a step that
    takes `step` seconds.
    """

    rank: int
    seconds: float
    median: float
    step: float

    def holds_up(self, factor: float) -> bool:
        """Whether it takes over `factor` times the median, and that is a noticeable part of the step."""
        return self.seconds > factor * self.median and self.seconds - self.median > NOTICEABLE * self.step

    def __str__(self) -> str:
        took = f"{self.seconds:.3f} s of its own work a step, the median rank {self.median:.3f} s"
        return f"rank {self.rank} is slow: {took} ({' and '.join(OWN_WORK)})"


def slowest(world: World, seconds: dict[str, float], steps: int) -> SlowRank:
    """The slowest rank by its own work in the last `steps` steps; `seconds` by phase. All ranks call it."""
    own = torch.zeros(world.size, dtype=torch.float64, device=world.device)
    own[world.rank] = sum(seconds.get(name, 0.0) for name in OWN_WORK) / max(1, steps)
    found: list[float] = world.sum(own).tolist()
    worst = max(range(world.size), key=found.__getitem__)
    return SlowRank(worst, found[worst], statistics.median(found), sum(seconds.values()) / max(1, steps))
