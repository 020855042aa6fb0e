"""One of four ranks that save a toy decoder in one layout and load it in every other; run by test_layouts.py.

Weights, gradients and so the optimizer's state are functions of a tensor's name, so that what a rank must hold after a
load is known exactly.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from xgenvideo import recipes
from xgenvideo.checkpoint import Ranks, Snapshot, load, load_into, save, search

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
LAYERS = 4


@dataclass(frozen=True)
class Toy:
    """Sizes of the axes, virtual stages a rank, and whether the data axis shards (ZeRO) or only replicates."""

    pipeline: int
    data: int
    tensor: int
    virtual: int = 1
    shards: bool = True

    @property
    def ranks(self) -> int:
        return self.pipeline * self.data * self.tensor


LAYOUTS = {
    "tp2pp2": Toy(2, 1, 2),
    "dp4": Toy(1, 4, 1),
    "dp4 replicated": Toy(1, 4, 1, shards=False),
    "pp4": Toy(4, 1, 1),
    "tp2dp2": Toy(1, 2, 2),
    "pp2dp2 virtual": Toy(2, 2, 1, virtual=2),
    "pp2": Toy(2, 1, 1),
    "dp2": Toy(1, 2, 1),
}


class Layer(nn.Module):
    """A column-parallel and a row-parallel matrix, and a norm; 5 rows do not divide by 2 or 4."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False)
        self.norm, self.odd = nn.LayerNorm(6), nn.Linear(3, 5)


class Part(nn.Module):
    """The layers of one stage, under their numbers in the whole model; the first has an embedding too."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(number): Layer() for number in numbers})
        if 0 in numbers:
            self.embedding = nn.Embedding(20_000, 6)  # the only tensor that is not small


def named(name: str, shape: torch.Size, salt: str) -> Tensor:
    """The values that belong to a name."""
    seed = int.from_bytes(hashlib.sha256(f"{salt}{name}".encode()).digest()[:4], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def like(full: Tensor, tensor: Tensor) -> Tensor:
    """`full` in the layout of `tensor`."""
    if not isinstance(tensor, DTensor):
        return full
    # Every rank knows the whole tensor: no communication.
    return distribute_tensor(full, tensor.device_mesh, tensor.placements, src_data_rank=None)


def build(toy: Toy, rank: int, salt: str) -> tuple[list[Part], list[torch.optim.AdamW]]:
    """This rank's parts in a layout, with weights by `salt`."""
    mesh = DeviceMesh(
        "cpu",
        torch.arange(toy.ranks).reshape(toy.pipeline, toy.data, toy.tensor),
        mesh_dim_names=("pipeline", "data", "tensor"),
    )
    stages = toy.pipeline * toy.virtual
    mine = range(rank // (toy.data * toy.tensor), stages, toy.pipeline)
    parts = [Part([n for n in range(LAYERS) if n * stages // LAYERS == stage]) for stage in mine]
    for part in parts:
        for layer in part.layers.values():
            if toy.tensor > 1:
                parallelize_module(layer, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
            if toy.data > 1 and toy.shards:
                fully_shard(layer, mesh=mesh["data"], reshard_after_forward=False)
        if toy.data > 1 and toy.shards:
            fully_shard(part, mesh=mesh["data"], reshard_after_forward=False)
        with torch.no_grad():
            for name, parameter in part.named_parameters():
                parameter.copy_(like(named(name, parameter.shape, salt), parameter))
    return parts, [torch.optim.AdamW(part.parameters(), lr=0.1) for part in parts]


def train_once(parts: list[Part], optimizers: list[torch.optim.AdamW]) -> None:
    """One step with gradients by name."""
    for part, optimizer in zip(parts, optimizers, strict=True):
        for name, parameter in part.named_parameters():
            parameter.grad = like(named(name, parameter.shape, "gradient"), parameter)  # type: ignore[assignment]
        optimizer.step()
        optimizer.zero_grad()


def tensors_of(parts: list[Part], optimizers: list[torch.optim.AdamW]) -> dict[str, dict[str, Tensor]]:
    """What a trainer saves."""
    model = {name: tensor for part in parts for name, tensor in part.state_dict().items()}
    state: dict[str, Any] = {}
    for part, optimizer in zip(parts, optimizers, strict=True):
        state |= get_optimizer_state_dict(part, optimizer, options=FLAT)
    return {"model": model, "optimizer": {name: value for name, value in state.items() if isinstance(value, Tensor)}}


def check(toy: Toy, rank: int, path: Path, ranks: Ranks) -> None:
    """Load into fresh parts with other weights; everything must be as after one step from the saved weights."""
    parts, optimizers = build(toy, rank, "other")
    tensors = tensors_of(parts, optimizers)
    found = load_into(path, tensors, ranks)
    for part, optimizer in zip(parts, optimizers, strict=True):
        state = get_optimizer_state_dict(part, optimizer, options=FLAT)
        state |= {name: tensor for name, tensor in tensors["optimizer"].items() if name in state}
        set_optimizer_state_dict(part, optimizer, state, options=FLAT)
    same, twin_optimizers = build(toy, rank, "saved")
    train_once(same, twin_optimizers)
    for _ in range(2):
        wanted, got = tensors_of(same, twin_optimizers), tensors_of(parts, optimizers)
        for kind in wanted:
            assert wanted[kind].keys() == got[kind].keys()
            for name, tensor in wanted[kind].items():
                assert torch.equal(local(tensor), local(got[kind][name])), f"{name} on rank {rank}"
        # And the next step is the same too.
        train_once(same, twin_optimizers)
        train_once(parts, optimizers)
    saved_by = found.state["saved_by"]
    assert (found.step, bool(found.rank_state)) == (7, saved_by == toy.ranks)
    assert not found.rank_state or found.rank_state["random"].tolist() == [rank]


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def main(folder: Path, source: str) -> None:
    """Save in the layout `source` if one is given; load in every layout of as many ranks as there are."""
    rank, world = dist.get_rank(), dist.get_world_size()
    ranks = Ranks.of_process(timeout_seconds=60)
    if source:
        parts, optimizers = build(LAYOUTS[source], rank, "saved")
        train_once(parts, optimizers)
        own = {"random": torch.tensor([rank])}
        tensors = tensors_of(parts, optimizers)
        save(folder, Snapshot(7, recipes.find("tiny"), tensors, {"saved_by": world}, own), 2, ranks=ranks)
    found = search(folder, ranks)
    assert found.newest is not None
    for name, toy in LAYOUTS.items():
        if toy.ranks == world:
            check(toy, rank, found.newest, ranks)
            if rank == 0:
                print(name, flush=True)


def check_whole(folder: Path) -> None:
    """One process reads a checkpoint of any layout whole."""
    whole = load(folder / "step-00000007")
    twin, optimizers = build(Toy(1, 1, 1), 0, "saved")
    train_once(twin, optimizers)
    wanted = tensors_of(twin, optimizers)
    assert whole.tensors.keys() == wanted.keys()
    for kind, tensors in wanted.items():
        assert whole.tensors[kind].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, whole.tensors[kind][name]), name


if __name__ == "__main__":
    world, this, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=this, world_size=world)
    main(Path(sys.argv[4]), sys.argv[5])
    if this == 0:
        check_whole(Path(sys.argv[4]))
    dist.destroy_process_group()
