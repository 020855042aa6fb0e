"""The pipeline cut by cost, and the bubble of a schedule in closed form.

The decoder is a row of units: self blocks, with a cross block before some of them, and the head at the end. A stage is
a run of neighbouring units; the cut may fall between a cross block and its self block. The head (2TdV) weighs as much
as one or two blocks, so a cut by block count leaves the last stage the slowest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from xgenvideo.config import LayoutConfig, ModelConfig
from xgenvideo.errors import ConfigError
from xgenvideo.plan.flops import pair_forward


@dataclass(frozen=True)
class Stage:
    """One chunk of the pipeline. `layers`, `cross`: global layer numbers; FLOPs are forward, causal, for one pair."""

    layers: tuple[int, ...]
    cross: tuple[int, ...]
    embedding: bool
    head: bool
    forward_flops: float
    lower_forward_flops: float

    @property
    def label(self) -> str:
        """Self and cross blocks as 7/0, with what stands at the ends of the pipeline."""
        ends = ("+embedding" if self.embedding else "") + ("+head" if self.head else "")
        return f"{len(self.layers)}/{len(self.cross)}{ends}"


@lru_cache(maxsize=512)
def cut(model: ModelConfig, text_tokens: int, stages: int, head: bool = True) -> tuple[Stage, ...]:
    """The cut of the decoder into `stages` runs whose slowest is fastest, and among those the most even one.

    `head=False` leaves the head's cost out of the balance: right only where its vocabulary is spread over all stages
    (vocabulary parallelism, arXiv 2411.05288). Raises ConfigError when there are more stages than blocks.
    """
    pair = pair_forward(model, text_tokens, frames=1)
    decoder = model.decoder
    units: list[tuple[str, int, float]] = []
    for layer in range(decoder.depth):
        if layer in decoder.cross_before:
            units.append(("cross", layer, pair.cross_block))
        units.append(("self", layer, pair.self_block_causal))
    if stages > len(units):
        raise ConfigError("layout.pipeline", stages, f"must be at most the decoder's {len(units)} blocks")
    ends = balanced([cost for _, _, cost in units], stages, last_extra=pair.head if head else 0.0)
    bounds = list(zip([0, *ends[:-1]], ends, strict=True))
    return tuple(
        _stage(units[start:end], decoder.lower_layers, i == 0, i == stages - 1, pair.head if head else 0.0)
        for i, (start, end) in enumerate(bounds)
    )


def _stage(units: list[tuple[str, int, float]], lower_layers: int, first: bool, last: bool, head_flops: float) -> Stage:
    lower = sum(cost for kind, layer, cost in units if kind == "self" and layer < lower_layers)
    return Stage(
        layers=tuple(layer for kind, layer, _ in units if kind == "self"),
        cross=tuple(layer for kind, layer, _ in units if kind == "cross"),
        embedding=first,
        head=last,
        forward_flops=sum(cost for _, _, cost in units) + (head_flops if last else 0.0),
        lower_forward_flops=lower,
    )


def balanced(costs: Sequence[float], parts: int, last_extra: float = 0.0) -> list[int]:
    """Ends of `parts` non-empty runs of `costs`, `last_extra` on the last: least maximum, then least sum of squares."""
    total = [0.0]
    for cost in costs:
        total.append(total[-1] + cost)
    count = len(costs)
    # best[end] = (maximum, sum of squares, ends) of cutting costs[:end] into as many parts as rounds done.
    best: list[tuple[float, float, list[int]]] = [(math.inf, math.inf, [])] * (count + 1)
    best[0] = (0.0, 0.0, [])
    for part in range(1, parts + 1):
        extra = last_extra if part == parts else 0.0
        best = [
            min(
                (_joined(best[start], total[end] - total[start] + extra, end) for start in range(end)),
                key=lambda found: found[:2],
                default=(math.inf, math.inf, []),
            )
            for end in range(count + 1)
        ]
    return best[count][2]


def _joined(found: tuple[float, float, list[int]], cost: float, end: int) -> tuple[float, float, list[int]]:
    return max(found[0], cost), found[1] + cost * cost, [*found[2], end]


def rank_of(stage: int, layout: LayoutConfig) -> int:
    """The pipeline rank that holds chunk `stage`: round and round, or there and back for the V-shaped schedule."""
    lap, place = divmod(stage, layout.pipeline)
    return layout.pipeline - 1 - place if layout.schedule == "zbv" and lap % 2 else place


Chunk = TypeVar("Chunk")


def by_rank(stages: Sequence[Chunk], layout: LayoutConfig) -> tuple[tuple[Chunk, ...], ...]:
    """The chunks of every pipeline rank: of Stages, or of anything that is given one a stage."""
    held: list[list[Chunk]] = [[] for _ in range(layout.pipeline)]
    for number, stage in enumerate(stages):
        held[rank_of(number, layout)].append(stage)
    return tuple(tuple(chunks) for chunks in held)


def fill_share(layout: LayoutConfig) -> float:
    """How much of the (P-1) microbatch times of filling and draining a schedule leaves idle: 1 for GPipe and 1F1B.

    Interleaving divides it by the virtual stages (Narayanan et al. 2021, arXiv 2104.04473). Where forward, input and
    weight gradient take equal time, zero-bubble H1 leaves a third and ZB-V nothing (Qi et al. 2024, arXiv 2401.10241).
    """
    if layout.schedule == "zbv":
        return 0.0
    if layout.schedule == "zero_bubble":
        return 1 / (3 * layout.virtual_stages)
    return 1 / layout.virtual_stages if layout.schedule == "interleaved_1f1b" else 1.0


def bubble(layout: LayoutConfig, microbatches: int) -> float:
    """Idle share of the decoder's time with equal stages: fill / (microbatches + fill)."""
    fill = (layout.pipeline - 1) * fill_share(layout)
    return fill / (microbatches + fill)


def microbatches_in_flight(layout: LayoutConfig, microbatches: int, rank: int) -> float:
    """Most microbatches whose activations pipeline rank `rank` holds at once, in whole-rank units (a chunk is 1/V)."""
    stages, chunks = layout.pipeline, layout.virtual_stages
    if layout.schedule == "gpipe":
        return float(microbatches)
    if layout.schedule == "zbv":
        return float(min(microbatches, stages))
    if chunks == 1:
        return float(min(microbatches, stages - rank))
    warm_up = 2 * (stages - rank - 1) + (chunks - 1) * stages + 1
    return min(microbatches * chunks, warm_up) / chunks
