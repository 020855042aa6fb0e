"""Every layout of a recipe on so many GPUs, those that fit the memory ranked by step time: seconds for thousands."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from xgenvideo.config import LayoutConfig, RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.plan.flops import Flops, training_flops
from xgenvideo.plan.memory import memory
from xgenvideo.plan.timing import RECOMPUTE, Machine, StepTime, step_time, visual_ranks

LARGEST_VIRTUAL = 3  # more, and the engine gathers weights several times a step
LARGEST_MICROBATCH = 16


@dataclass(frozen=True)
class Choice:
    """One layout with what else is chosen beside it, and what it comes to. `gpus` may be fewer than were offered."""

    layout: LayoutConfig
    recompute: str
    placement: str
    gpus: int
    step: StepTime
    memory_bytes: float
    mfu: float
    mfu_quadratic: float

    @property
    def label(self) -> str:
        """All of it on one line."""
        layout = self.layout
        schedule = layout.schedule + (f" x{layout.virtual_stages}" if layout.virtual_stages > 1 else "")
        axes = f"tensor {layout.tensor} pipeline {layout.pipeline} data {layout.data}"
        return f"{axes}, {schedule}, microbatch {layout.microbatch_pairs}, recompute {self.recompute}, {self.placement}"


@dataclass(frozen=True)
class Found:
    """What a search found: the choices that fit, fastest first, how many were tried, and the recipe's own choice.

    `own` is the recipe's layout with its visual part over all ranks; `place` its place among the choices, from 1, or
    None where it does not fit. `own_stage_0` is the same layout with the encoder in stage 0.
    """

    choices: tuple[Choice, ...]
    tried: int
    own: Choice | None
    place: int | None
    own_stage_0: Choice | None


def search(config: RunConfig, gpus: int, machine: Machine) -> Found:
    """Rank every valid layout of `config` on `gpus` GPUs. Raises ConfigError where none fits."""
    tried, fitting = 0, []
    for layout in layouts(config, gpus, machine.cluster.gpus_per_node):
        changed = dataclasses.replace(config, layout=layout)
        for placement in _placements(changed, gpus):
            for recompute in RECOMPUTE:
                tried += 1
                if _least_memory(changed, placement, recompute) > machine.cluster.gpu.memory_bytes:
                    continue
                fitting.append(choose(changed, machine, placement, recompute, gpus))
                break  # more recomputation only takes longer
    if not fitting:
        rule = f"no layout fits into {machine.cluster.gpu.memory_bytes / 2**30:.0f} GiB a GPU; take more GPUs"
        raise ConfigError("--gpus", gpus, rule)
    ranked = tuple(sorted(fitting, key=lambda choice: choice.step.total))
    own = _own(config, machine, "all_ranks", gpus)
    place = None
    if own is not None and own.memory_bytes <= machine.cluster.gpu.memory_bytes:
        place = 1 + sum(choice.step.total < own.step.total for choice in ranked)
    return Found(ranked, tried, own, place, _own(config, machine, "stage_0", gpus))


def layouts(config: RunConfig, gpus: int, gpus_per_node: int) -> Iterator[LayoutConfig]:
    """Layouts that the engine can run: tensor within a node, whole microbatches, a schedule that fits its chunks."""
    decoder, pairs = config.model.decoder, config.train.global_batch_pairs
    blocks = decoder.depth + decoder.cross_blocks
    for tensor in _divisors(min(gpus_per_node, gpus)):
        if decoder.kv_heads % tensor or decoder.heads % tensor:
            continue
        for pipeline in _divisors(gpus // tensor):
            if gpus % tensor or pipeline > blocks:
                continue
            data = gpus // (tensor * pipeline)
            for microbatch in (1, 2, 4, 8, LARGEST_MICROBATCH):
                if pairs % (data * microbatch) == 0:
                    for schedule, chunks in schedules(pipeline, blocks, pairs // (data * microbatch)):
                        yield LayoutConfig(tensor, pipeline, data, chunks, microbatch, schedule)


def schedules(pipeline: int, blocks: int, microbatches: int) -> Iterator[tuple[str, int]]:
    """Schedules with their chunks a rank: interleaving wants whole rounds of microbatches."""
    yield "1f1b", 1
    if pipeline == 1:
        return
    for chunks in range(2, LARGEST_VIRTUAL + 1):
        if pipeline * chunks <= blocks and microbatches % pipeline == 0:
            yield "interleaved_1f1b", chunks
    if pipeline * 2 <= blocks and microbatches >= 2 * pipeline:
        yield "zbv", 2


def choose(config: RunConfig, machine: Machine, placement: str, recompute: str, gpus: int) -> Choice:
    """Work out one choice; `gpus` are those that it is charged for."""
    step = step_time(config, machine, placement, recompute)
    flops = step_flops(config)
    peak = gpus * machine.cluster.gpu.bf16_flops_per_second * step.total
    fullest = _least_memory(config, placement, recompute)
    return Choice(
        config.layout, recompute, placement, gpus, step, fullest, flops.total / peak, flops.total_quadratic / peak
    )


def step_flops(config: RunConfig) -> Flops:
    """Model FLOPs of a step, the encoder's forward included unless features are cached."""
    pairs, data = config.train.global_batch_pairs, config.data
    encoded = 0 if data.cache_features else pairs * data.frames
    return training_flops(config, pairs, data.text_tokens, data.frames, encoded)


def _least_memory(config: RunConfig, placement: str, recompute: str) -> float:
    ranks = memory(config, config.data.text_tokens, placement == "stage_0", recompute)
    return max(rank.total for rank in ranks)


def _placements(config: RunConfig, gpus: int) -> tuple[str, ...]:
    if config.data.cache_features or config.layout.pipeline == 1:
        return ("all_ranks",)
    beside = config.layout.world + visual_ranks(config) <= gpus
    return ("all_ranks", "stage_0", "separate") if beside else ("all_ranks", "stage_0")


def _own(config: RunConfig, machine: Machine, placement: str, gpus: int) -> Choice | None:
    """The recipe's own layout on so many GPUs, where they fill it."""
    layout = config.layout
    replica = layout.tensor * layout.pipeline
    if gpus % replica or config.train.global_batch_pairs % (gpus // replica * layout.microbatch_pairs):
        return None
    changed = dataclasses.replace(config, layout=dataclasses.replace(layout, data=gpus // replica))
    return choose(changed, machine, placement, "none", gpus)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
