"""Step time of the video model in closed form: visual phase, text pass, pipeline, traffic, optimizer.

Rates are fitted on published runs (rates.py); how far such predictions are off is `make planner-report`'s business.
The simulation (simulate.py) plays the same seconds through the real order of the schedule.
"""

import math
from dataclasses import dataclass

from xgenvideo.config import RunConfig
from xgenvideo.plan.flops import BACKWARD_AND_FORWARD, frame_flops, pair_forward
from xgenvideo.plan.hardware import Cluster
from xgenvideo.plan.kernels import BF16_BYTES, all_reduce, memory_pass, message, network_share, ring_bandwidth
from xgenvideo.plan.layer import Software
from xgenvideo.plan.memory import message_numbers, stage_parameters, visual_parameters
from xgenvideo.plan.pipeline import Stage, by_rank, cut, fill_share
from xgenvideo.plan.rates import Rates
from xgenvideo.plan.textrun import GRADIENT_BYTES, OPTIMIZER_BYTES
from xgenvideo.plan.units import TUNED, Units, Work, unit_times

PLACEMENTS = ("all_ranks", "stage_0", "separate", "cached")
RECOMPUTE = ("none", "half", "full")


@dataclass(frozen=True)
class Machine:
    """Where a plan runs: wires, rates, and what its kernels are like."""

    cluster: Cluster
    rates: Rates
    software: Software = TUNED


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by part; the parts follow each other and their sum is the step.

    `visual`: encoder and resampler outside the pipeline. `decoder`: the slowest rank's microbatches; `fill`: bubble;
    `messages`, `data`: pipeline and gradient traffic that nothing hides; `join`: latents to the first stage and back.
    """

    placement: str
    visual: float
    text_pass: float
    decoder: float
    fill: float
    messages: float
    join: float
    data: float
    optimizer: float
    jitter: float

    @property
    def total(self) -> float:
        """The whole step."""
        pipeline = self.text_pass + self.decoder + self.fill + self.messages
        return self.visual + pipeline + self.join + self.data + self.optimizer + self.jitter


def visual_flops(config: RunConfig) -> float:
    """Training FLOPs of one pair's visual part: encoder forward (unless cached), resampler, pool and projections."""
    pair = pair_forward(config.model, config.data.text_tokens, config.data.frames)
    encoder = 0.0 if config.data.cache_features else config.data.frames * frame_flops(config.model.vision)
    return encoder + BACKWARD_AND_FORWARD * (pair.resampler + pair.pool_and_projections)


def needs_text_pass(config: RunConfig) -> bool:
    """Whether the contrastive loss needs a forward-only text pass: it does when a step has several microbatches."""
    objective, replica = config.objective, config.layout.data * config.layout.microbatch_pairs
    several = config.train.global_batch_pairs > replica
    return several and objective.contrastive_weight > 0 and objective.contrastive_scope == "global"


def text_pass_flops(config: RunConfig, text_tokens: int) -> float:
    """Forward FLOPs of one pair's extra pass through the decoder's lower half, causal; 0 where there is none."""
    decoder = config.model.decoder
    pair = pair_forward(config.model, text_tokens, config.data.frames)
    return decoder.lower_layers * pair.self_block_causal if needs_text_pass(config) else 0.0


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one microbatch in one chunk: forward, backward with what it recomputes, and of the text pass."""

    forward: float
    backward: float
    text: float


def chunk_times(
    config: RunConfig, machine: Machine, placement: str = "all_ranks", recompute: str = "none"
) -> tuple[StageTimes, ...]:
    """Every chunk of the pipeline, in the order that a microbatch passes them."""
    layout = config.layout
    units = unit_times(config.model, work_of(config, machine))
    stages = cut(config.model, config.data.text_tokens, layout.pipeline * layout.virtual_stages)
    times = [_chunk(config, machine, stage, units, recompute) for stage in stages]
    if placement == "stage_0":
        # Tensor-parallel ranks of the first stage share its pairs.
        pairs = layout.microbatch_pairs / layout.tensor
        encoder = 0.0 if config.data.cache_features else units.encoder
        first = times[0]
        forward = first.forward + pairs * (encoder + units.resampler)
        times[0] = StageTimes(forward, first.backward + pairs * 2 * units.resampler, first.text)
    return tuple(times)


def work_of(config: RunConfig, machine: Machine) -> Work:
    """The microbatch of `config` on `machine`."""
    layout, data = config.layout, config.data
    return Work(
        machine.cluster,
        machine.rates,
        machine.software,
        layout.tensor,
        layout.microbatch_pairs,
        data.text_tokens,
        data.frames,
    )


def _chunk(config: RunConfig, machine: Machine, stage: Stage, units: Units, recompute: str) -> StageTimes:
    own, cross = units.self_block, units.cross_block
    head = units.head if stage.head else 0.0
    layers, crosses = len(stage.layers), len(stage.cross)
    forward = layers * own.forward + crosses * cross.forward + head / BACKWARD_AND_FORWARD
    again = layers * own.recomputed(recompute) + crosses * cross.recomputed(recompute)
    backward = layers * own.backward + crosses * cross.backward + 2 * head / BACKWARD_AND_FORWARD + again
    if not machine.software.fused_accumulation:
        added = machine.rates.accumulate_bytes * stage_parameters(config, stage) / config.layout.tensor
        backward += memory_pass(machine.cluster, machine.rates, added)
    lower = sum(layer < config.model.decoder.lower_layers for layer in stage.layers)
    return StageTimes(forward, backward, lower * own.forward if needs_text_pass(config) else 0.0)


def microbatches_of(config: RunConfig) -> int:
    """Microbatches a replica takes one after another."""
    return config.train.global_batch_pairs // (config.layout.data * config.layout.microbatch_pairs)


def step_time(config: RunConfig, machine: Machine, placement: str = "all_ranks", recompute: str = "none") -> StepTime:
    """Seconds of one step on the config's layout, `placement` one of PLACEMENTS; all pairs at full length."""
    layout, microbatches = config.layout, microbatches_of(config)
    chunks = chunk_times(config, machine, placement, recompute)
    ranks = by_rank_times(config, chunks)
    train = [sum(chunk.forward + chunk.backward for chunk in held) for held in ranks]
    text = [sum(chunk.text for chunk in held) for held in ranks]
    share = fill_share(layout)
    decoder, fill = microbatches * max(train), share * (sum(train) - max(train))
    text_pass = microbatches * max(text) + (sum(text) - max(text)) / layout.virtual_stages
    visual = visual_seconds(config, machine, placement)
    if placement == "separate":
        # The visual ranks work on the next batch while the decoder's work on this one: the slower side sets the pace.
        visual = max(0.0, visual - decoder - fill - text_pass)
    messages = _message_seconds(config, machine, microbatches, text_pass > 0)
    join = _join_seconds(config, machine, placement)
    data, optimizer = _replica_seconds(config, machine, placement)
    busy = visual + text_pass + decoder + fill + messages + join + data + optimizer
    nodes = max(1.0, layout.world / machine.cluster.gpus_per_node)
    jitter = busy * machine.rates.jitter * 1e-2 * math.log2(nodes)
    return StepTime(placement, visual, text_pass, decoder, fill, messages, join, data, optimizer, jitter)


def by_rank_times(config: RunConfig, chunks: tuple[StageTimes, ...]) -> tuple[tuple[StageTimes, ...], ...]:
    """The chunks that each pipeline rank holds."""
    return by_rank(chunks, config.layout)


def visual_seconds(config: RunConfig, machine: Machine, placement: str) -> float:
    """Seconds of the visual phase: encoder and resampler forward before the pipeline, resampler backward after it."""
    if placement == "stage_0":
        return 0.0
    layout = config.layout
    units = unit_times(config.model, work_of(config, machine))
    pairs = config.train.global_batch_pairs / layout.data
    encoder = 0.0 if config.data.cache_features or placement == "cached" else units.encoder
    ranks = layout.tensor * layout.pipeline
    if placement == "separate":
        ranks = max(1, round(visual_ranks(config) / layout.data))
    return math.ceil(pairs / ranks) * (encoder + BACKWARD_AND_FORWARD * units.resampler)


def visual_ranks(config: RunConfig) -> int:
    """Ranks that the separate placement gives to the visual world: by its share of the FLOPs, one a replica at least.

    They are GPUs beside the layout's, so the plan's world grows by them.
    """
    pair = pair_forward(config.model, config.data.text_tokens, config.data.frames)
    decoder = config.model.decoder
    blocks = decoder.depth * pair.self_block_causal + decoder.cross_blocks * pair.cross_block + pair.head
    share = visual_flops(config) / (BACKWARD_AND_FORWARD * blocks)
    return max(config.layout.data, math.ceil(share * config.layout.world / config.layout.data) * config.layout.data)


def _message_seconds(config: RunConfig, machine: Machine, microbatches: int, text_pass: bool) -> float:
    """Pipeline messages that nothing hides: hidden states and relayed latents, both ways, and the text pass's."""
    layout, model = config.layout, config.model
    if layout.pipeline == 1:
        return 0.0
    latents = model.resampler.queries * model.resampler.width
    pairs = layout.microbatch_pairs
    numbers = pairs * message_numbers(model.decoder, config.data.text_tokens, latents)
    rates, cluster = machine.rates, machine.cluster
    one = message(cluster, rates, BF16_BYTES * numbers / layout.tensor)
    text = message(cluster, rates, BF16_BYTES * pairs * config.data.text_tokens * model.decoder.width / layout.tensor)
    shown = rates.exposed_messages_overlapped if machine.software.overlaps_messages else rates.exposed_messages
    passes = microbatches + (layout.pipeline - 1) / layout.virtual_stages
    return passes * layout.virtual_stages * shown * (2 * one + (text / 2 if text_pass else 0.0))


def _join_seconds(config: RunConfig, machine: Machine, placement: str) -> float:
    """Latents of a replica to its first stage, and their gradients home: one gather and one scatter a step."""
    layout, resampler = config.layout, config.model.resampler
    if placement == "stage_0" or layout.tensor * layout.pipeline == 1:
        return 0.0
    pairs = config.train.global_batch_pairs / layout.data
    moved = BF16_BYTES * pairs * resampler.queries * resampler.width / layout.tensor
    cluster = machine.cluster
    own = cluster.node_bytes_per_second / cluster.gpus_per_node * network_share(cluster, machine.rates)
    return 2 * moved / own


def _replica_seconds(config: RunConfig, machine: Machine, placement: str) -> tuple[float, float]:
    """Gradient traffic over the replicas (decoder) and over the visual world, what shows of it; the optimizer."""
    layout, cluster, rates = config.layout, machine.cluster, machine.rates
    stages = by_rank(cut(config.model, config.data.text_tokens, layout.pipeline * layout.virtual_stages), layout)
    decoder = max(sum(stage_parameters(config, stage) for stage in held) for held in stages) / layout.tensor
    shown = rates.exposed_data if machine.software.overlaps_data else 1.0
    data, replicas = 0.0, layout.data
    if replicas > 1:
        moved = GRADIENT_BYTES * decoder * (replicas - 1) / replicas
        data = shown * moved / ring_bandwidth(cluster, rates, layout.tensor, replicas)
    visual = visual_parameters(config)
    seeing = replicas * layout.tensor * (1 if placement == "stage_0" else layout.pipeline)
    data += all_reduce(cluster, rates, GRADIENT_BYTES * visual / 2, seeing)
    held_state = decoder / replicas + visual / seeing
    return data, memory_pass(cluster, rates, OPTIMIZER_BYTES * held_state)


def encoder_slow_down(config: RunConfig, text_tokens: int) -> float:
    """How many times slower the pipeline's steady state is with the visual part in stage 0 than over all ranks.

    For an even decoder cut and many microbatches, by FLOPs, so it depends on the model and the text length alone.
    """
    stages, visual = config.layout.pipeline, visual_flops(config)
    pair = pair_forward(config.model, text_tokens, config.data.frames)
    decoder = config.model.decoder
    blocks = decoder.depth * pair.self_block_causal + decoder.cross_blocks * pair.cross_block
    stage = BACKWARD_AND_FORWARD * (blocks + pair.head) / stages
    return (visual + stage) / (visual / stages + stage)
