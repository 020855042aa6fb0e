"""Bytes that one GPU sends in a step, by kind and by the link they take; seconds are the kernels' business."""

from dataclasses import dataclass

from xgenvideo.config import RunConfig
from xgenvideo.plan.hardware import Cluster
from xgenvideo.plan.memory import compute_bytes, message_numbers, stage_parameters, visual_parameters
from xgenvideo.plan.pipeline import by_rank, cut
from xgenvideo.plan.timing import microbatches_of, needs_text_pass


@dataclass(frozen=True)
class Traffic:
    """One kind: what it is for, the link, and the bytes that the busiest GPU sends in a step."""

    kind: str
    link: str
    bytes_per_step: float


def traffic(config: RunConfig, cluster: Cluster) -> tuple[Traffic, ...]:
    """Every kind of traffic of one step; a kind that the layout does not have is left out."""
    kinds = (
        _tensor(config, cluster),
        _messages(config, cluster),
        _replicas(config, cluster),
        _visual(config),
        _join(config),
    )
    return tuple(kind for kind in kinds if kind.bytes_per_step > 0)


def _link(cluster: Cluster, ranks: int) -> str:
    return "NVLink" if ranks <= cluster.nvlink_domain else "network"


def _tensor(config: RunConfig, cluster: Cluster) -> Traffic:
    """An all-gather and a reduce-scatter, or an all-reduce, twice a block forward and twice backward."""
    layout, decoder, tokens = config.layout, config.model.decoder, config.data.text_tokens
    stages = by_rank(cut(config.model, tokens, layout.pipeline * layout.virtual_stages), layout)
    blocks = max(sum(len(stage.layers) + len(stage.cross) for stage in held) for held in stages)
    hidden = compute_bytes(config) * layout.microbatch_pairs * tokens * decoder.width
    passes = 4.0 + (1.0 if needs_text_pass(config) else 0.0)
    sent = passes * blocks * 2 * (layout.tensor - 1) / layout.tensor * hidden * microbatches_of(config)
    return Traffic("tensor parallel", _link(cluster, layout.tensor), sent)


def _messages(config: RunConfig, cluster: Cluster) -> Traffic:
    layout, model = config.layout, config.model
    numbers = message_numbers(model.decoder, config.data.text_tokens, model.resampler.queries * model.resampler.width)
    each = compute_bytes(config) * layout.microbatch_pairs * numbers / layout.tensor
    ways = 2 * layout.virtual_stages if layout.pipeline > 1 else 0
    return Traffic("pipeline", _link(cluster, layout.world), ways * each * microbatches_of(config))


def _replicas(config: RunConfig, cluster: Cluster) -> Traffic:
    """ZeRO-1: gradients reduce-scattered in fp32, weights gathered in the working precision."""
    layout = config.layout
    stages = by_rank(cut(config.model, config.data.text_tokens, layout.pipeline * layout.virtual_stages), layout)
    held = max(sum(stage_parameters(config, stage) for stage in chunks) for chunks in stages) / layout.tensor
    sent = (4 + compute_bytes(config)) * held * (layout.data - 1) / layout.data
    return Traffic("replicas, decoder", _link(cluster, layout.tensor * layout.data), sent)


def _visual(config: RunConfig) -> Traffic:
    world = config.layout.world
    sent = (4 + compute_bytes(config)) * visual_parameters(config) * (world - 1) / world
    return Traffic("replicas, visual", "network" if world > 8 else "NVLink", sent)


def _join(config: RunConfig) -> Traffic:
    """Latents to a replica's first stage and their gradients home, on the first stage's GPUs."""
    layout, resampler = config.layout, config.model.resampler
    replica = layout.tensor * layout.pipeline
    pairs = config.train.global_batch_pairs / layout.data
    moved = compute_bytes(config) * pairs * resampler.queries * resampler.width / layout.tensor
    return Traffic("latents, both ways", "network" if replica > 8 else "NVLink", 2 * moved if replica > 1 else 0.0)
