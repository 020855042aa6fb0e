"""One layout of one recipe, planned: what `xgv plan RECIPE --gpus N --gpu NAME` shows, in a fraction of a second."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgenvideo.config import LayoutConfig, RunConfig, check
from xgenvideo.errors import ConfigError
from xgenvideo.plan.communication import Traffic, traffic
from xgenvideo.plan.curation import CurationPlan, plan_curation
from xgenvideo.plan.flops import Flops, training_flops
from xgenvideo.plan.hardware import Gpu, find_gpu, usual_cluster
from xgenvideo.plan.memory import RankMemory, memory
from xgenvideo.plan.operations import Bill, Checkpoints, DataDemand, bill, checkpoints, data_demand
from xgenvideo.plan.parameters import Parameters, parameters
from xgenvideo.plan.pipeline import Stage, bubble, by_rank, cut
from xgenvideo.plan.rates import load_rates, spread
from xgenvideo.plan.seed import STATED, Implied, implied
from xgenvideo.plan.timing import (
    PLACEMENTS,
    Machine,
    StepTime,
    encoder_slow_down,
    microbatches_of,
    needs_text_pass,
    step_time,
    text_pass_flops,
    visual_ranks,
)

SMALLEST_WIDTH = 1024  # below it a step is bound by kernel launches, not by matrix work


@dataclass(frozen=True)
class Estimate:
    """A whole run with the encoder in one place, on `gpus` GPUs.

    `low` and `high`: seconds between which 90 % of left-out published runs of this kind of GPU fell. `mfu` counts
    causal attention as half, `mfu_quadratic` in full; both count the encoder's forward, once, and never recomputation.
    """

    step: StepTime
    gpus: int
    low: float
    high: float
    mfu: float
    mfu_quadratic: float
    bill: Bill


@dataclass(frozen=True)
class PipelineCut:
    """The decoder's cut: chunks by rank, and how much slower the slowest rank is than the mean (1 is even)."""

    ranks: tuple[tuple[Stage, ...], ...]
    slowest_over_mean: float
    slowest_over_mean_without_head: float
    bubble: float
    microbatches: int


@dataclass(frozen=True)
class PlanReport:
    """Everything that `render` prints. Counts are exact; `estimates` rest on rates fitted on published runs."""

    recipe: str
    gpus: int
    gpu: Gpu
    layout: LayoutConfig
    steps: int
    global_batch_pairs: int
    text_tokens: int
    frames: int
    encoder_cached: bool
    parameters: Parameters
    pair_flops: Flops
    step_flops: Flops
    text_pass_flops: float
    cut: PipelineCut
    memory: tuple[RankMemory, ...]
    memory_stage_0_encoder: tuple[RankMemory, ...]
    estimates: tuple[Estimate, ...]
    traffic: tuple[Traffic, ...]
    checkpoints: Checkpoints
    data: DataDemand
    encoder_slow_down_even: float
    pairs_expected: int
    iterations_per_epoch: int
    seed: Implied | None
    curation: CurationPlan | None
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether every rank's memory, margins included, is within the GPU's."""
        return all(rank.total <= self.gpu.memory_bytes for rank in self.memory)


def plan(
    config: RunConfig, gpus: int, gpu: str, machine: Machine | None = None, curated: Path | None = None
) -> PlanReport:
    """Plan `config` on `gpus` GPUs called `gpu`; its tensor and pipeline axes stay, its data axis follows the GPUs.

    `machine` is one that was measured, with its own rates; `curated` a dataset whose curation was measured. Raises
    ConfigError for an unknown GPU, a number of GPUs that the layout cannot use, or a schedule that does not fit.
    """
    machine = machine or machine_of(gpu)
    config = on_gpus(config, gpus)
    tokens, frames, cached = config.data.text_tokens, config.data.frames, config.data.cache_features
    pairs, expected = config.train.global_batch_pairs, config.data.pairs_expected
    step_flops = training_flops(config, pairs, tokens, frames, 0 if cached else pairs * frames)
    estimates = tuple(_estimate(config, machine, step_flops, placement) for placement in placements(config))
    return PlanReport(
        recipe=config.name,
        gpus=gpus,
        gpu=machine.cluster.gpu,
        layout=config.layout,
        steps=config.train.steps,
        global_batch_pairs=pairs,
        text_tokens=tokens,
        frames=frames,
        encoder_cached=cached,
        parameters=parameters(config.model),
        pair_flops=training_flops(config, 1, tokens, frames, 0 if cached else frames),
        step_flops=step_flops,
        text_pass_flops=pairs * text_pass_flops(config, tokens) if needs_text_pass(config) else 0.0,
        cut=_cut(config),
        memory=memory(config, tokens),
        memory_stage_0_encoder=memory(config, tokens, encoder_in_stage_0=True),
        estimates=estimates,
        traffic=traffic(config, machine.cluster),
        checkpoints=checkpoints(config, gpus, estimates[0].step.total),
        data=data_demand(config, estimates[0].step.total),
        encoder_slow_down_even=encoder_slow_down(config, tokens),
        pairs_expected=expected,
        iterations_per_epoch=expected // pairs,
        seed=implied(config) if expected == STATED.pairs else None,
        curation=plan_curation(expected, curated) if expected else None,
        notes=_notes(config),
    )


def machine_of(gpu: str) -> Machine:
    """A cluster of `gpu` as it is usually wired, with the fitted rates and tuned kernels. Raises ConfigError."""
    return Machine(usual_cluster(find_gpu(gpu)), load_rates())


def placements(config: RunConfig) -> tuple[str, ...]:
    """Where the encoder may stand: one place without a pipeline or with cached features."""
    if config.data.cache_features or config.layout.pipeline == 1:
        return PLACEMENTS[:1]
    return PLACEMENTS


def on_gpus(config: RunConfig, gpus: int) -> RunConfig:
    """`config` with its data axis set so that the layout fills `gpus` GPUs. Raises ConfigError."""
    layout = config.layout
    replica = layout.tensor * layout.pipeline
    if gpus < 1 or gpus % replica:
        near = sorted({max(1, gpus // replica) * replica, max(1, math.ceil(gpus / replica)) * replica})
        raise ConfigError("--gpus", gpus, f"must be a multiple of layout.tensor x layout.pipeline = {replica}", near)
    _check_schedule(layout)
    changed = dataclasses.replace(config, layout=dataclasses.replace(layout, data=gpus // replica))
    check(changed)
    return changed


def _check_schedule(layout: LayoutConfig) -> None:
    chunks = layout.virtual_stages
    if layout.schedule == "zbv" and chunks != 2:
        raise ConfigError("layout.virtual_stages", chunks, "must be 2 for the schedule zbv", [2])
    if layout.schedule in ("gpipe", "1f1b") and chunks != 1:
        rule = f"must be 1 for the schedule {layout.schedule}; interleaved_1f1b takes more"
        raise ConfigError("layout.virtual_stages", chunks, rule, [1])


def _notes(config: RunConfig) -> tuple[str, ...]:
    """What this plan leaves out, and where its assumption does not hold."""
    notes = [
        "Every pair is planned at full length; shorter clips and texts are padded and cost the same.",
        "Times rest on rates fitted on published language-model runs; `make planner-report` prints their errors.",
        "Kernels are taken to be tuned (fused passes, attention written for the GPU, traffic beside compute).",
    ]
    if config.model.decoder.width < SMALLEST_WIDTH:
        notes.append("Matrices this small do not reach the assumed rate on any GPU: calibrate the machine instead.")
    return tuple(notes)


def _cut(config: RunConfig) -> PipelineCut:
    layout, tokens = config.layout, config.data.text_tokens
    microbatches = microbatches_of(config)
    count = layout.pipeline * layout.virtual_stages
    ranks = by_rank(cut(config.model, tokens, count), layout)
    headless = by_rank(cut(config.model, tokens, count, head=False), layout)
    return PipelineCut(
        ranks=ranks,
        slowest_over_mean=_slowest_over_mean(ranks),
        slowest_over_mean_without_head=_slowest_over_mean(headless),
        bubble=bubble(layout, microbatches),
        microbatches=microbatches,
    )


def _slowest_over_mean(ranks: tuple[tuple[Stage, ...], ...]) -> float:
    costs = [sum(stage.forward_flops for stage in chunks) for chunks in ranks]
    return max(costs) * len(costs) / sum(costs)


def _estimate(config: RunConfig, machine: Machine, step_flops: Flops, placement: str) -> Estimate:
    step = step_time(config, machine, placement)
    gpus = config.layout.world + (visual_ranks(config) if placement == "separate" else 0)
    gpu = machine.cluster.gpu
    peak = gpus * gpu.bf16_flops_per_second * step.total
    low, high = spread("hopper" if gpu.hopper else "ampere")
    share = checkpoints(config, gpus, step.total).goodput
    return Estimate(
        step=step,
        gpus=gpus,
        low=low * step.total,
        high=high * step.total,
        mfu=step_flops.total / peak,
        mfu_quadratic=step_flops.total_quadratic / peak,
        bill=bill(gpu.name, gpu.watts, gpus, config.train.steps, step.total, share),
    )


def to_json(report: PlanReport) -> dict[str, Any]:
    """The report as plain JSON values: every field, and the totals that are properties."""
    values: dict[str, Any] = dataclasses.asdict(report)
    values["fits"] = report.fits
    values["parameters"] |= {"total": report.parameters.total, "trainable": report.parameters.trainable}
    for name, flops in (("pair_flops", report.pair_flops), ("step_flops", report.step_flops)):
        values[name] |= {"total": flops.total, "total_quadratic": flops.total_quadratic}
    for name, ranks in (("memory", report.memory), ("memory_stage_0_encoder", report.memory_stage_0_encoder)):
        for entry, rank in zip(values[name], ranks, strict=True):
            entry |= {"counted": rank.counted, "total": rank.total}
    for entry, estimate in zip(values["estimates"], report.estimates, strict=True):
        entry["step"]["total"] = estimate.step.total
    if report.curation is not None:
        values["curation"] |= {"inputs": report.curation.inputs, "core_hours": report.curation.core_hours}
    return values
