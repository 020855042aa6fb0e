"""FLOPs of training, by part: the one formula that the planner and the training log share.

Only matrix products and convolutions count, 2mnk each, as torch's FlopCounterMode counts them; norms, softmax,
activations and rotary positions do not. A trainable part costs three forwards (one forward, two for the backward); the
frozen encoder costs one. Recomputation and the contrastive loss's extra text pass are hardware work, never model FLOPs.
Two conventions for causal self-attention are given: half the square (what is needed) and the full square (what most
published MFU figures count, and what FlopCounterMode sees).
"""

from dataclasses import dataclass

from xgenvideo.config import DecoderConfig, ModelConfig, ResamplerConfig, RunConfig, VisionConfig

BACKWARD_AND_FORWARD = 3  # one forward, one product for the input's gradient, one for the weight's
EFFICIENTNET_PATCH_FLOPS = 15_669_696.0  # EfficientNet-Lite0, for each 32 x 32 pixels


@dataclass(frozen=True)
class Flops:
    """FLOPs of one call's worth of pairs. The forwards are single forward passes; the totals are training."""

    encoder: float
    trainable_forward: float
    trainable_forward_quadratic: float

    @property
    def total(self) -> float:
        """Training FLOPs with causal self-attention counted as half the square."""
        return self.encoder + BACKWARD_AND_FORWARD * self.trainable_forward

    @property
    def total_quadratic(self) -> float:
        """Training FLOPs with self-attention counted as the full square."""
        return self.encoder + BACKWARD_AND_FORWARD * self.trainable_forward_quadratic


@dataclass(frozen=True)
class PairForward:
    """Forward FLOPs of the trainable parts for one pair; blocks are given for a single block. Attention is apart."""

    resampler: float
    pool_and_projections: float
    self_block: float
    self_attention_quadratic: float
    cross_block: float
    head: float

    @property
    def self_block_causal(self) -> float:
        """One self block, its attention scores counted as half the square."""
        return self.self_block + self.self_attention_quadratic / 2

    @property
    def self_block_quadratic(self) -> float:
        """One self block, its attention scores counted as the full square."""
        return self.self_block + self.self_attention_quadratic


def training_flops(config: RunConfig, pairs: int, text_tokens: int, frames: float, encoded_frames: int) -> Flops:
    """FLOPs to train on `pairs` pairs of `text_tokens` tokens and `frames` frames each (padding is computed too).

    `encoded_frames` is the number of frames that the encoder really ran on, over all pairs: pairs x frames, or 0 when
    features are cached.
    """
    pair = pair_forward(config.model, text_tokens, frames)
    decoder = config.model.decoder
    outside = pair.resampler + pair.pool_and_projections + decoder.cross_blocks * pair.cross_block + pair.head
    return Flops(
        encoder=float(encoded_frames) * frame_flops(config.model.vision),
        trainable_forward=pairs * (outside + decoder.depth * pair.self_block_causal),
        trainable_forward_quadratic=pairs * (outside + decoder.depth * pair.self_block_quadratic),
    )


def pair_forward(model: ModelConfig, text_tokens: int, frames: float) -> PairForward:
    """Forward FLOPs of the trainable parts for one pair of `text_tokens` tokens and `frames` frames."""
    decoder, queries, w = model.decoder, model.resampler.queries, model.resampler.width
    linear, attention = self_block_flops(decoder, text_tokens)
    pool = 2 * 2 * w * w + 2 * 2 * queries * w * w + 4 * queries * w
    projections = 2 * w * model.embedding + 2 * decoder.width * model.embedding
    return PairForward(
        resampler=resampler_flops(model.resampler, model.vision, frames),
        pool_and_projections=float(pool + projections),
        self_block=linear,
        self_attention_quadratic=attention,
        cross_block=cross_block_flops(decoder, text_tokens, queries, w),
        head=2.0 * text_tokens * decoder.width * decoder.vocab,
    )


def frame_flops(vision: VisionConfig) -> float:
    """One frame through the vision tower: patch convolution, then `depth` layers over patches and the class token."""
    if vision.convolutional:
        return EFFICIENTNET_PATCH_FLOPS * vision.patches
    w, tokens = vision.width, vision.patches + 1
    convolution = 2 * vision.patches * 3 * vision.patch**2 * w
    layer = 2 * tokens * (4 * w * w + 2 * w * vision.mlp) + 4 * tokens * tokens * w
    return float(convolution + vision.depth * layer)


def resampler_flops(resampler: ResamplerConfig, vision: VisionConfig, frames: float) -> float:
    """Forward over `frames` frames: queries attend to [frame features; queries], so keys are frames x P + Q."""
    w, queries, media = resampler.width, resampler.queries, frames * vision.patches
    keys = media + queries
    projections = 2 * (2 * queries + 2 * keys) * w * w
    attention = 4 * queries * keys * w
    feed_forward = 2 * queries * 8 * w * w
    return float(2 * media * vision.width * w + resampler.depth * (projections + attention + feed_forward))


def self_block_flops(decoder: DecoderConfig, text_tokens: int) -> tuple[float, float]:
    """Forward of one self block: its matrix weights, and apart its attention scores over the full square."""
    d, inner = decoder.width, decoder.heads * decoder.head_size
    weights = 2 * d * inner + 2 * d * decoder.kv_heads * decoder.head_size + 3 * d * decoder.mlp
    return 2.0 * text_tokens * weights, 4.0 * text_tokens * text_tokens * inner


def cross_block_flops(decoder: DecoderConfig, text_tokens: int, queries: int, latent_width: int) -> float:
    """Forward of one cross block: text queries over `queries` latents, whose keys and values are made here."""
    d, inner, grouped = decoder.width, decoder.heads * decoder.head_size, decoder.kv_heads * decoder.head_size
    text = 2 * text_tokens * (2 * d * inner + 3 * d * decoder.mlp)
    latents = 2 * queries * 2 * latent_width * grouped
    return float(text + latents + 4 * text_tokens * queries * inner)
