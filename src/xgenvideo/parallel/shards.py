"""Parameters as shards: ZeRO-1 through `fully_shard`, and what the optimizer sees of them, which is plain tensors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from xgenvideo.models.initial import Box
from xgenvideo.parallel.world import World

Value = Callable[[str, torch.Size, Box], Tensor]  # name in the whole model, whole shape, part asked for


@dataclass(frozen=True, eq=False)
class Piece:
    """A trained parameter: its name in the whole model, the parameter as autograd knows it, and what this rank has.

    `local` shares the parameter's memory and is what the optimizer steps; `owned`: whether this rank counts it in sums
    over all ranks, so that what several ranks hold alike is counted once.
    """

    name: str
    parameter: nn.Parameter
    local: nn.Parameter
    owned: bool

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole parameter."""
        return self.parameter.shape

    def like(self, local: Tensor) -> Tensor:
        """A tensor beside `local` (optimizer state, a gradient) as the part of a whole that it is."""
        if not isinstance(self.parameter, DTensor) or local.shape != self.local.shape:
            return local
        whole = self.parameter
        return DTensor.from_local(
            local, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
        )

    def take_gradient(self) -> None:
        """Hand `local` its gradient. What is partial over tensor ranks is added up first."""
        gradient = self.parameter.grad
        if self.local is self.parameter:
            return
        if isinstance(gradient, DTensor):
            assert isinstance(self.parameter, DTensor)
            gradient = gradient.redistribute(placements=self.parameter.placements).to_local()
        self.local.grad = gradient
        self.parameter.grad = None


def pieces_of(named: Iterable[tuple[str, nn.Parameter]], world: World) -> list[Piece]:
    """The pieces of named parameters, in their order; those without elements included."""
    found = []
    for name, parameter in named:
        local = nn.Parameter(parameter.to_local().detach()) if isinstance(parameter, DTensor) else parameter
        found.append(Piece(name, parameter, local, owns(parameter, world)))
    return found


def owns(parameter: Tensor, world: World) -> bool:
    """Whether this rank is the first of those that hold the same piece of a decoder parameter (or of any other)."""
    if not isinstance(parameter, DTensor):
        return world.rank == 0
    mesh = parameter.device_mesh
    coordinate = mesh.get_coordinate()
    assert coordinate is not None, f"rank {world.rank} is not in {mesh}"
    first = all(
        at == 0 for at, placement in zip(coordinate, parameter.placements, strict=True) if placement == Replicate()
    )
    names = mesh.mesh_dim_names or ()
    # A module that the tensor axis does not cut is held alike by all of its ranks.
    return first and ("tensor" in names or "everyone" in names or world.place.tensor == 0)


def shard_modules(modules: list[nn.Module], mesh: DeviceMesh, precision: str) -> None:
    """ZeRO-1 over `mesh`, one parameter group a module: weights stay whole from the first use in a step to its end.

    Gradients are summed over the ranks (each has divided its loss by global counts) and in float32; the sum is taken
    once a step, after the last microbatch. Under "bf16" weights are gathered in bf16 from float32 masters.
    """
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if precision == "bf16":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for module in modules:
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=False, mp_policy=policy)
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


def synchronise_after(module: nn.Module, last: bool) -> None:
    """Whether the coming backward is the last of the step: only then are gradients summed and weights given up."""
    if isinstance(module, FSDPModule):
        module.set_is_last_backward(last)
        module.set_reshard_after_backward(last)
        module.set_requires_gradient_sync(last)


def reshard(module: nn.Module) -> None:
    """Give up the whole weights that a pass without a backward has left gathered."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def materialise(module: nn.Module, named: dict[str, str], device: torch.device, value: Value) -> None:
    """Give the meta parameters of `module` memory and values, one by one; `value` is asked for this rank's part alone.

    `named`: name in `module` -> name in the whole model.
    """
    module.to_empty(device=device)
    with torch.no_grad():
        for own, name in named.items():
            parameter = module.get_parameter(own)
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            if local.numel():
                local.copy_(value(name, parameter.shape, box_of(parameter)))


def box_of(parameter: Tensor) -> Box:
    """The part of the whole that this rank holds of a parameter with elements here."""
    if not isinstance(parameter, DTensor):
        return tuple(slice(0, size) for size in parameter.shape)
    sizes, starts = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    local = tuple(parameter.to_local().shape)
    assert local == tuple(sizes), f"{local} elements here, {sizes} by the placements {parameter.placements}"
    return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


def total_norm(pieces: list[Piece], world: World) -> Tensor:
    """Euclidean norm of all gradients of the model, each element counted once, in at least float32.

    One kernel for the norms of many gradients, as torch's own `clip_grad_norm_` does it.
    """
    gradients = [piece.local.grad for piece in pieces if piece.owned and piece.local.grad is not None]
    dtype = torch.promote_types(pieces[0].local.dtype, torch.float32)
    if not gradients:
        return world.sum(torch.zeros((), dtype=dtype, device=world.device)).sqrt()
    squares = torch.stack(torch._foreach_norm(gradients, 2, dtype=dtype)).square()
    return world.sum(squares.sum()).sqrt()
