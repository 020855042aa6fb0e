"""Who writes and who reads what: torch.distributed.checkpoint's planners, with staging and without pickle."""

import dataclasses
import io
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import ReadItem, SavePlan
from torch.distributed.tensor import DTensor

from xgenvideo.checkpoint.ranks import Ranks
from xgenvideo.checkpoint.writer import is_small


class StagedPlanner(DefaultSavePlanner):
    """Plans a save from the live tensors and resolves its pieces from their staged copies in host memory.

    A plan is made once and used for every save of the same tensors: only then do ranks have to talk about it.
    """

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.staged: dict[str, Tensor] = {}

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The staged copy of this rank's piece."""
        return self.staged[index.fqn]


class SavePlans:
    """This rank's part of a save, and on rank 0 what the whole checkpoint will hold."""

    def __init__(self, tensors: dict[str, Tensor], ranks: Ranks) -> None:
        """Make the plan together with all ranks. A piece that several ranks have is written by one of them."""
        self.planner, self.metadata = StagedPlanner(), Metadata({})
        self.signature = signature(tensors)
        self.planner.set_up_planner(tensors, is_coordinator=ranks.rank == 0)

        def divide(plans: list[SavePlan]) -> list[SavePlan]:
            divided, self.metadata = self.planner.create_global_plan(with_small_once(plans))
            return divided

        self.own: SavePlan = self.planner.finish_plan(ranks.together(self.planner.create_local_plan, divide))
        self.planner.state_dict = {}  # the plan is all that is needed; the tensors live elsewhere
        self._pin = any(tensor.is_cuda for tensor in tensors.values())

    def stage(self, tensors: dict[str, Tensor]) -> None:
        """Copy what this rank will write to host memory, which is kept from save to save: the training stall."""
        staged, waits = self.planner.staged, False
        with torch.no_grad():
            for item in self.own.items:
                name = item.index.fqn
                local = local_piece(tensors[name])
                if name not in staged:
                    staged[name] = torch.empty(local.shape, dtype=local.dtype, pin_memory=self._pin)
                staged[name].copy_(local, non_blocking=True)
                waits |= local.is_cuda
        if waits:
            torch.cuda.synchronize()

    @property
    def bytes(self) -> int:
        """What this rank writes, without headers."""
        return sum(tensor.nbytes for tensor in self.planner.staged.values())


def with_small_once(plans: list[SavePlan]) -> list[SavePlan]:
    """The plans of all ranks with each small piece in the first of those that have it.

    Left to torch, pieces that ranks hold alike are spread over them to even out what each writes, and a rank that loads
    would have to read files of hundreds of others.
    """
    written: set[MetadataIndex] = set()
    divided = []
    for plan in plans:
        items = [item for item in plan.items if not (is_small(item) and item.index in written)]
        written.update(item.index for item in items)
        divided.append(dataclasses.replace(plan, items=items))
    return divided


class VerifiedLoadPlanner(DefaultLoadPlanner):
    """Plans a load into tensors of any layout; refuses whatever is not a tensor, which stock DCP would unpickle."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> NoReturn:
        """Never: there are only tensors."""
        raise AssertionError(f"{read_item.dest_index.fqn} is not a tensor")


def local_piece(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def signature(tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    """Everything of the tensors that a plan depends on."""
    return tuple(
        (name, tensor.shape, tensor.dtype, tensor.placements if isinstance(tensor, DTensor) else None)
        for name, tensor in tensors.items()
    )
