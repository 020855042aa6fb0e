"""Seconds of the parts of the video model on one GPU: self and cross blocks, head, encoder, resampler.

The same kernels and rates as the published runs (kernels.py, rates.py), with this model's shapes.
"""

from dataclasses import dataclass
from functools import lru_cache

from xgenvideo.config import DecoderConfig, ModelConfig, ResamplerConfig, VisionConfig
from xgenvideo.plan.flops import frame_flops
from xgenvideo.plan.hardware import Cluster
from xgenvideo.plan.kernels import BF16_BYTES, all_reduce, attention, matmul, memory_pass
from xgenvideo.plan.layer import BACKWARD_PASSES, Batch, LayerShape, LayerTime, Software, layer_time, passed_bytes
from xgenvideo.plan.rates import Rates
from xgenvideo.plan.textrun import head_seconds

# What the plan takes the kernels to be. `tuned`: fused or compiled passes, attention written for the GPU, traffic
# beside compute, as in the H100 runs published since 2024. `eager`: PyTorch as it comes.
TUNED = Software("cudnn", kernels=14, hides_tensor=True, overlaps_data=True, overlaps_messages=True)
COMPILED = Software("flash", kernels=14, overlaps_data=True)
EAGER = Software("flash", kernels=35, eager=True, overlaps_data=True, fused_accumulation=False)
SOFTWARE = {"tuned": TUNED, "compiled": COMPILED, "eager": EAGER}


@dataclass(frozen=True)
class Work:
    """What every unit needs to know of the machine and of a microbatch."""

    cluster: Cluster
    rates: Rates
    software: Software
    tensor: int
    pairs: int
    text_tokens: int
    frames: int


@dataclass(frozen=True)
class Units:
    """Seconds of one microbatch through one self block, one cross block, the head; and of one pair's visual part.

    `head` is forward and backward together, a third of it the forward. `encoder` and `resampler` are forwards.
    """

    self_block: LayerTime
    cross_block: LayerTime
    head: float
    encoder: float
    resampler: float


@lru_cache(maxsize=256)
def unit_times(model: ModelConfig, work: Work) -> Units:
    """Seconds of every unit of `model`."""
    decoder, rows = model.decoder, work.pairs * work.text_tokens
    one = Batch(rows, work.text_tokens, work.tensor)
    cluster, rates = work.cluster, work.rates
    return Units(
        self_block=layer_time(cluster, rates, work.software, self_shape(decoder), one),
        cross_block=_cross_block(model, work),
        head=head_seconds(cluster, rates, rows, decoder.width, decoder.vocab, work.tensor),
        encoder=encoder_seconds(model.vision, work),
        resampler=resampler_seconds(model.resampler, model.vision, work),
    )


def self_shape(decoder: DecoderConfig) -> LayerShape:
    """A self block's sizes."""
    size = decoder.head_size
    return LayerShape(
        decoder.width, decoder.heads, decoder.heads * size, decoder.kv_heads * size, decoder.mlp, gated=True
    )


def _cross_block(model: ModelConfig, work: Work) -> LayerTime:
    """Text attends to latents: the queries' products on text rows, keys and values on latent rows, no mask to skip."""
    decoder, queries, width = model.decoder, model.resampler.queries, model.resampler.width
    shape, tensor = self_shape(decoder), work.tensor
    rows, cluster, rates = work.pairs * work.text_tokens, work.cluster, work.rates
    products = (
        (rows, shape.inner // tensor, shape.width),
        (work.pairs * queries, max(2 * shape.grouped // tensor, 2 * decoder.head_size), width),
        (rows, shape.width, shape.inner // tensor),
        (rows, 2 * shape.mlp // tensor, shape.width),
        (rows, shape.width, shape.mlp // tensor),
    )
    linear = sum(matmul(cluster, rates, *product) for product in products)
    heads = shape.heads / tensor
    scores, back = attention(
        cluster, rates, work.software.attention, rows, queries, shape.inner // tensor, heads, causal=False
    )
    moved = passed_bytes(work.software, shape, Batch(rows, queries, tensor))
    passes = memory_pass(cluster, rates, moved) * (rates.eager if work.software.eager else 1)
    launched = (work.software.kernels + 6) * rates.kernel * 1e-6  # two head norms and two gates more than a self block
    shown = 1 - rates.hidden_tensor if work.software.hides_tensor else 1.0
    traffic = 2 * shown * all_reduce(cluster, rates, BF16_BYTES * rows * shape.width, tensor)
    return LayerTime(
        forward=linear + scores + passes + launched + traffic,
        backward=2 * linear + back + BACKWARD_PASSES * passes + 2 * launched + traffic,
        linear=linear,
        attention=scores,
        passes=passes,
    )


def encoder_seconds(vision: VisionConfig, work: Work) -> float:
    """Forward of the frozen encoder over one pair's frames, all in one batch, on one GPU."""
    cluster, rates = work.cluster, work.rates
    if vision.convolutional:  # as one product of its FLOPs; its convolutions are slower
        inner = frame_flops(vision) / (2 * vision.patches * vision.width)
        return matmul(cluster, rates, work.frames * vision.patches, vision.width, inner)
    w, tokens = vision.width, vision.patches + 1
    rows = work.frames * tokens
    products = ((3 * w, w), (w, w), (vision.mlp, w), (w, vision.mlp))
    linear = sum(matmul(cluster, rates, rows, columns, inner) for columns, inner in products)
    scores, _ = attention(cluster, rates, work.software.attention, rows, tokens, w, vision.heads, causal=False)
    moved = BF16_BYTES * rows * (work.software.passes * w + 2 * vision.mlp)
    passes = memory_pass(cluster, rates, moved) * (rates.eager if work.software.eager else 1)
    layer = linear + scores + passes + work.software.kernels * rates.kernel * 1e-6
    return vision.depth * layer + matmul(cluster, rates, work.frames * vision.patches, w, 3 * vision.patch**2)


def resampler_seconds(resampler: ResamplerConfig, vision: VisionConfig, work: Work) -> float:
    """Forward of the resampler over one pair's features on one GPU; its backward takes twice that."""
    w, queries, media = resampler.width, resampler.queries, work.frames * vision.patches
    keys, cluster, rates = media + queries, work.cluster, work.rates
    products = ((queries, w, w), (keys, 2 * w, w), (queries, w, w), (queries, 4 * w, w), (queries, w, 4 * w))
    linear = sum(matmul(cluster, rates, *product) for product in products)
    scores, _ = attention(cluster, rates, work.software.attention, queries, keys, w, resampler.heads, causal=False)
    moved = BF16_BYTES * (5 * media * w + queries * (work.software.passes * w + 8 * w))
    layer = linear + scores + memory_pass(cluster, rates, moved) + work.software.kernels * rates.kernel * 1e-6
    return matmul(cluster, rates, media, w, vision.width) + resampler.depth * layer
