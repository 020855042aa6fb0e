"""What one rank knows of the others: its place, its groups, and the collectives of a training step.

Pairs of the global batch belong to ranks as follows: the batch is cut into one part a replica, and the part of a
replica into one share for each of its ranks, in the order of `Layout.pair_rank`. Shares differ by at most one pair.
"""

import datetime
import os
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from xgenvideo.config import LayoutConfig, TrainConfig
from xgenvideo.errors import TrainError
from xgenvideo.parallel.layout import Layout, Place
from xgenvideo.parallel.meeting import meet
from xgenvideo.parallel.phases import Phases
from xgenvideo.parallel.waiting import Waiting

AXES = ("pipeline", "replicate", "shard", "tensor")
ALONE = Layout(1, 1, 1)


@dataclass(frozen=True, eq=False)
class Groups:
    """The device mesh (axes of AXES; one of replicate and shard has size 1) and the process groups along its axes.

    `pipeline_back` has the ranks of `pipeline`; with several stages a rank it is a group of its own, for streams that
    go to an earlier rank: on a GPU the messages of two ranks in one group wait for one another, whichever way they go.
    """

    mesh: DeviceMesh
    everyone: DeviceMesh
    replica: dist.ProcessGroup
    data: dist.ProcessGroup
    pipeline: dist.ProcessGroup
    pipeline_back: dist.ProcessGroup
    tensor: dist.ProcessGroup


@dataclass(frozen=True, eq=False)
class World:
    """This rank, how many there are, the device that it computes on, the layout that they make up, the `phases` of its
    step, and its `waiting` in the pipeline.
    """

    rank: int
    size: int
    device: torch.device
    layout: Layout = ALONE
    groups: Groups | None = None
    phases: Phases = field(default_factory=Phases)
    waiting: Waiting = field(default_factory=Waiting)

    def __repr__(self) -> str:
        return f"World(rank={self.rank}/{self.size}, {self.place}, {self.device})"

    @property
    def place(self) -> Place:
        """The coordinates of this rank."""
        return self.layout.place(self.rank)

    @property
    def pair_rank(self) -> int:
        """Which share of the global batch is this rank's."""
        return self.layout.pair_rank(self.rank)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of `value` over all ranks."""
        if self.groups is not None:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def largest(self, value: Tensor) -> Tensor:
        """The largest `value` over all ranks, element by element."""
        if self.groups is not None:
            value = value.clone()
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return value

    def wait(self) -> None:
        """Until every rank is here."""
        if self.groups is not None:
            # Left to itself, a barrier over NCCL takes the device that it thinks current.
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def gather_shares(self, rows: Tensor, total: int) -> Tensor:
        """Rows [share ..] of this rank's pairs -> rows [total ..] of all pairs of the global batch, in their order."""
        if self.groups is None:
            return rows
        shares = [self.layout.share(pair_rank, total) for pair_rank in range(self.size)]
        found = _gather_uneven(rows, max(map(len, shares)), self.size, None)
        by_pair = sorted(range(self.size), key=self.layout.pair_rank)
        return torch.cat([found[rank][: len(share)] for rank, share in zip(by_pair, shares, strict=True)])

    def gather_replica(self, rows: Tensor, total: int) -> Tensor:
        """Rows [share ..] of this rank's pairs -> rows [total / data ..] of its replica's pairs, on all its ranks."""
        if self.groups is None or self.layout.ranks_per_replica == 1:
            return rows
        shares = self._shares_of_replica(total)
        found = _gather_uneven(rows, max(shares), len(shares), self.groups.replica)
        return torch.cat([part[:share] for part, share in zip(found, shares, strict=True)])

    def gather_replicas(self, rows: Tensor) -> Tensor:
        """Rows [n ..] of a replica's pairs -> rows [n * data ..] of all pairs; all ranks of a replica give the same."""
        if self.groups is None or self.layout.data == 1:
            return rows
        found = rows.new_empty((self.layout.data * len(rows), *rows.shape[1:]))
        dist.all_gather_single(found, rows.contiguous(), group=self.groups.data)
        return found

    def to_first_stage(self, rows: Tensor, total: int) -> Tensor | None:
        """Rows [share ..] of this rank's pairs -> those of the whole replica, on the ranks of the first stage alone."""
        if self.groups is None or self.layout.ranks_per_replica == 1:
            return rows
        shares = self._shares_of_replica(total)
        first = self._first_of_replica()
        padded = _padded(rows, max(shares))
        found = [torch.empty_like(padded) for _ in shares] if self.rank == first else None
        dist.gather(padded, found, dst=first, group=self.groups.replica)
        if self.place.pipeline:
            return None
        whole = rows.new_empty((sum(shares), *rows.shape[1:]))
        if found is not None:
            torch.cat([part[:share] for part, share in zip(found, shares, strict=True)], out=whole)
        if self.layout.tensor > 1:
            dist.broadcast(whole, src=first, group=self.groups.tensor)
        return whole

    def from_first_stage(self, whole: Tensor | None, like: Tensor, total: int) -> Tensor:
        """The way back of `to_first_stage`: each rank gets the rows of its own pairs, of the shape of `like`."""
        if self.groups is None or self.layout.ranks_per_replica == 1:
            assert whole is not None, "one rank is its own first stage"
            return whole
        shares = self._shares_of_replica(total)
        first = self._first_of_replica()
        parts = None
        if self.rank == first:
            assert whole is not None, "the first stage has the rows of the replica"
            parts = [_padded(part, max(shares)) for part in whole.to(like.dtype).split(shares)]
        own = like.new_empty((max(shares), *like.shape[1:]))
        dist.scatter(own, parts, src=first, group=self.groups.replica)
        return own[: len(like)]

    def from_stage(self, rows: Tensor, stage: int) -> Tensor:
        """What pipeline rank `stage` of the replica has in `rows`, on all ranks of the replica."""
        if self.groups is not None and self.layout.pipeline > 1:
            source = self.layout.rank(Place(stage, self.place.data, self.place.tensor))
            dist.broadcast(rows, src=source, group=self.groups.pipeline)
        return rows

    def _shares_of_replica(self, total: int) -> list[int]:
        ranks = self.layout.ranks_per_replica
        return [len(self.layout.share(self.place.data * ranks + at, total)) for at in range(ranks)]

    def _first_of_replica(self) -> int:
        return self.layout.rank(Place(0, self.place.data, 0))


def _padded(rows: Tensor, count: int) -> Tensor:
    """Rows [n ..] as [count ..]; what is added is never read."""
    if len(rows) == count:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros((count - len(rows), *rows.shape[1:]))])


def _gather_uneven(rows: Tensor, most: int, ranks: int, group: dist.ProcessGroup | None) -> tuple[Tensor, ...]:
    found = rows.new_empty((ranks * most, *rows.shape[1:]))
    dist.all_gather_single(found, _padded(rows, most), group=group)
    parts: tuple[Tensor, ...] = found.split(most)
    return parts


def single_process() -> World:
    """The world of a process that was not launched as one of many; its device is the first GPU where there is one."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    return World(rank=0, size=1, device=device, phases=Phases(device), waiting=Waiting(device))


def launched_size() -> int:
    """How many ranks torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_world(
    config: LayoutConfig,
    startup_seconds: float = TrainConfig.startup_timeout_seconds,
    step_seconds: float = TrainConfig.step_timeout_seconds,
) -> World:
    """Meet the other ranks that torchrun started and lay out the mesh; alone, `single_process`.

    The seconds are train.startup_timeout_seconds and train.step_timeout_seconds: ranks meet within the first, and no
    collective waits longer than the longer of both. Raises what `meet` raises.
    """
    if launched_size() == 1:
        return single_process()
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    store = meet(rank, size, startup_seconds)
    longest = datetime.timedelta(seconds=max(startup_seconds, step_seconds))
    try:
        backend = "cuda:nccl,cpu:gloo" if cuda else "gloo"
        # No device_id: with it all messages of a group share one communicator, in which those of a schedule to one
        # neighbour wait for those to the other (pytorch issue 148162, pull requests 154132 and 175712).
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=longest)
    except (RuntimeError, ValueError) as error:
        raise TrainError(f"rank {rank} of {size} met the others but cannot reach them ({error})") from error
    world = lay_out(config, rank, size, device)
    be_patient(world, longest)
    return world


def be_patient(world: World, longest: datetime.timedelta) -> None:
    """Let the collectives of every group wait that long; groups are made with torch's default of 30 minutes."""
    assert world.groups is not None, "a single process waits for nobody"
    groups = world.groups
    meshes = (groups.mesh, groups.everyone)
    made = [group for mesh in meshes for group in mesh.get_all_groups()]
    for group in (*made, groups.replica, groups.data, groups.pipeline_back):
        dist.distributed_c10d._set_pg_timeout(longest, group)


def lay_out(config: LayoutConfig, rank: int, size: int, device: torch.device) -> World:
    """The world of a rank in an existing process group: its mesh and its groups."""
    layout = Layout.of(config)
    assert layout.ranks == size, f"{layout} on {size} ranks: check_layout comes first"
    replicate, shard = (layout.data, 1) if config.data_parallel == "replicate" else (1, layout.data)
    ranks = torch.arange(size).reshape(layout.pipeline, replicate, shard, layout.tensor)
    mesh = DeviceMesh(device.type, ranks, mesh_dim_names=AXES)
    everyone = DeviceMesh(device.type, torch.arange(size), mesh_dim_names=("everyone",))
    by_axis = torch.arange(size).reshape(layout.pipeline, layout.data, layout.tensor)
    replicas = DeviceMesh(device.type, by_axis.transpose(0, 1).flatten(1), mesh_dim_names=("data", "replica"))
    data = DeviceMesh(device.type, by_axis.transpose(1, 2).flatten(0, 1), mesh_dim_names=("replica", "data"))
    forth = back = mesh.get_group("pipeline")
    if config.virtual_stages > 1 and layout.pipeline > 1:
        back, _ = dist.new_subgroups_by_enumeration(by_axis.permute(1, 2, 0).flatten(0, 1).tolist())
    groups = Groups(
        mesh,
        everyone,
        replicas.get_group("replica"),
        data.get_group("data"),
        forth,
        back,
        mesh.get_group("tensor"),
    )
    return World(rank, size, device, layout, groups, Phases(device), Waiting(device))


def leave_world() -> None:
    """Give the process group back, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
