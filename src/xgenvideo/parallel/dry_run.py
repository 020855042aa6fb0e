"""The parts of any rank of a large run, built for real on the meta device under a process group that sends nothing.

One CPU process lays out the same modules that training would, cuts and shards them, and counts what came out.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from xgenvideo.config import RunConfig
from xgenvideo.parallel.engine import lay_out_parts
from xgenvideo.parallel.layout import check_layout
from xgenvideo.parallel.pipeline import stream_dtype
from xgenvideo.parallel.shards import Piece, pieces_of
from xgenvideo.parallel.world import World, lay_out
from xgenvideo.plan.communication import traffic
from xgenvideo.plan.pipeline import bubble
from xgenvideo.plan.report import machine_of
from xgenvideo.plan.timing import microbatches_of

MASTER_AND_MOMENTS = 12  # bytes: a float32 master and AdamW's two moments
GRADIENT = 4  # bytes: float32, whole until the end of the step


@dataclass(frozen=True)
class RankParts:
    """What a rank holds. `parameters`: elements of its tensor slice of the stage, and of the trunk, whole.

    Bytes: `weights` in the working precision, `gradients` in float32, `optimizer` (masters and moments of its shard),
    `encoder` frozen in the working precision.
    """

    rank: int
    pipeline: int
    data: int
    tensor: int
    stages: tuple[str, ...]
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    encoder: int

    @property
    def total(self) -> int:
        """Bytes in all, without activations."""
        return self.weights + self.gradients + self.optimizer + self.encoder


@dataclass(frozen=True)
class DryRun:
    """Every pipeline rank's first rank, which holds the most of its stage, and the totals over the whole world.

    `elements_on_all_ranks`: trained elements in optimizer shards of all ranks together, copies included.
    `bytes_sent_a_step`: by kind, of the busiest rank, from the planner's formula.
    """

    world: int
    ranks: tuple[RankParts, ...]
    cut: tuple[str, ...]
    parameters_total: int
    parameters_trained: int
    elements_on_all_ranks: int
    bubble: float
    microbatches: int
    bytes_sent_a_step: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.world} ranks; stages (self/cross blocks): {' '.join(self.cut)}",
            f"bubble {self.bubble:.1%} of the decoder's time in closed form, {self.microbatches} microbatches a step",
            "",
            "GiB of the first rank of each pipeline rank, the largest of its stage; activations not counted",
            f"{'rank':>5} {'stages':<18} {'parameters':>15} {'weights':>8} {'gradients':>10} {'optimizer':>10} "
            f"{'encoder':>8} {'total':>7}",
        ]
        for row in self.ranks:
            sizes = (row.weights, row.gradients, row.optimizer, row.encoder, row.total)
            told = [f"{size / 2**30:.2f}" for size in sizes]
            lines.append(
                f"{row.rank:>5} {' '.join(row.stages):<18} {row.parameters:>15,} {told[0]:>8} {told[1]:>10} "
                f"{told[2]:>10} {told[3]:>8} {told[4]:>7}"
            )
        lines += [
            "",
            "GB that the busiest rank sends in a step, by the planner's formula: "
            + ", ".join(f"{kind} {sent / 1e9:.3g}" for kind, sent in self.bytes_sent_a_step.items()),
            f"trained elements in the optimizer shards of all {self.world} ranks: {self.elements_on_all_ranks:,}",
            f"trained parameters: {self.parameters_trained:,}",
            f"total parameters: {self.parameters_total:,}",
        ]
        return "\n".join(lines)


def dry_run(config: RunConfig, world_size: int) -> DryRun:
    """Build the parts of the first rank of each pipeline rank. Raises ConfigError for a layout that does not fit.

    The other ranks of a stage hold the same modules; what they hold is added up from the placements of every tensor.
    """
    layout = check_layout(config, world_size)
    rows: list[RankParts] = []
    labels: tuple[str, ...] = ()
    trained = everywhere = encoder = 0
    for stage in range(layout.pipeline):
        rank = stage * layout.data * layout.tensor
        with pretended(config, rank, world_size) as world:
            model, texts, trunk, stages = lay_out_parts(config, world)
            encoder = sum(parameter.numel() for parameter in model.vision.parameters())
            visual = {id(parameter) for parameter in trunk.parameters()} | {id(model.logit_scale)}
            named = [(name, p) for name, p in model.named_parameters() if not name.startswith("vision.")]
            pieces = pieces_of(named, world)
            labels = tuple(one.label for one in stages)
            rows.append(_row(config, world, pieces, [labels[text.number] for text in texts], encoder))
            own = [piece for piece in pieces if stage == 0 or id(piece.parameter) not in visual]
            trained += sum(piece.shape.numel() for piece in own)
            everywhere += sum(_held(piece, world, id(piece.parameter) in visual) for piece in own)
    microbatches = microbatches_of(config)
    share = bubble(config.layout, microbatches)
    sent = {kind.kind: kind.bytes_per_step for kind in traffic(config, machine_of("h100").cluster)}
    return DryRun(world_size, tuple(rows), labels, trained + encoder, trained, everywhere, share, microbatches, sent)


@contextmanager
def pretended(config: RunConfig, rank: int, size: int) -> Iterator[World]:
    """The world of one rank whose collectives return at once and send nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        yield lay_out(config.layout, rank, size, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def _slice(piece: Piece) -> int:
    """Elements of a parameter on a rank while it is whole over the data axis: its tensor slice."""
    parameter = piece.parameter
    if not isinstance(parameter, DTensor):
        return parameter.numel()
    names = parameter.device_mesh.mesh_dim_names or ()
    cut = [
        parameter.device_mesh.size(axis)
        for axis, (name, placement) in enumerate(zip(names, parameter.placements, strict=True))
        if name == "tensor" and placement.is_shard()
    ]
    return parameter.numel() // (cut[0] if cut else 1)


def _held(piece: Piece, world: World, visual: bool) -> int:
    """Elements of a parameter in the shards of all ranks that hold some of it."""
    parameter, layout = piece.parameter, world.layout
    if not isinstance(parameter, DTensor):
        return parameter.numel() * world.size
    if visual:
        return parameter.numel()
    copies = layout.tensor if _slice(piece) == parameter.numel() else 1
    return parameter.numel() * copies * world_copies(parameter)


def world_copies(parameter: DTensor) -> int:
    """How often the data axis holds a parameter: once when it is sharded, else once a replica."""
    mesh = parameter.device_mesh
    names = mesh.mesh_dim_names or ()
    return mesh.size(names.index("replicate")) if "replicate" in names else 1


def _row(config: RunConfig, world: World, pieces: list[Piece], stages: list[str], encoder: int) -> RankParts:
    place, working = world.place, stream_dtype(config).itemsize
    whole = sum(_slice(piece) for piece in pieces)
    own = sum(piece.local.numel() for piece in pieces)
    return RankParts(
        rank=world.rank,
        pipeline=place.pipeline,
        data=place.data,
        tensor=place.tensor,
        stages=tuple(stages),
        parameters=whole,
        weights=whole * working,
        gradients=whole * GRADIENT,
        optimizer=own * MASTER_AND_MOMENTS,
        encoder=encoder * working,
    )


def to_text(run: DryRun) -> str:
    """The dry run as JSON text."""
    return json.dumps(run.to_json(), indent=2) + "\n"
