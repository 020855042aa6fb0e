"""Exact parameter counts by part, from the sizes in a ModelConfig alone; equal to the built model's."""

from dataclasses import dataclass

from xgenvideo.config import DecoderConfig, ModelConfig, ResamplerConfig, VisionConfig

EFFICIENTNET_PARAMETERS = 3_371_008  # EfficientNet-Lite0 without its classifier


@dataclass(frozen=True)
class Parameters:
    """Parameter counts by part. `self_blocks` and `cross_blocks` are sums over all blocks of the decoder."""

    encoder: int
    resampler: int
    embedding_and_head: int
    self_blocks: int
    cross_blocks: int
    norms_and_projections: int

    @property
    def total(self) -> int:
        """Every parameter, the frozen encoder's included."""
        return self.encoder + self.trainable

    @property
    def trainable(self) -> int:
        """All but the frozen encoder."""
        blocks = self.self_blocks + self.cross_blocks
        return self.resampler + self.embedding_and_head + blocks + self.norms_and_projections


def parameters(model: ModelConfig) -> Parameters:
    """Count the parameters of every part of `model`."""
    decoder = model.decoder
    return Parameters(
        encoder=encoder_parameters(model.vision),
        resampler=resampler_parameters(model.resampler, model.vision.width),
        embedding_and_head=2 * decoder.vocab * decoder.width,
        self_blocks=decoder.depth * self_block_parameters(decoder),
        cross_blocks=decoder.cross_blocks * cross_block_parameters(decoder, model.resampler.width),
        norms_and_projections=norms_and_projections_parameters(model),
    )


def self_block_parameters(decoder: DecoderConfig) -> int:
    """One causal self-attention block: two RMSNorms, query, key, value, output and SwiGLU; biases and norms if any."""
    d = decoder.width
    inner, grouped = decoder.heads * decoder.head_size, decoder.kv_heads * decoder.head_size
    biases = inner + 2 * grouped if decoder.attention_biases else 0
    norms = 2 * decoder.head_size if decoder.query_key_norm else 0
    return 2 * d + 2 * d * inner + 2 * d * grouped + biases + norms + 3 * d * decoder.mlp


def cross_block_parameters(decoder: DecoderConfig, latent_width: int) -> int:
    """One gated cross-attention block: keys and values read latents, query and key are normed, two scalar gates."""
    d = decoder.width
    inner, grouped = decoder.heads * decoder.head_size, decoder.kv_heads * decoder.head_size
    norms_and_gates = 2 * d + 2 * decoder.head_size + 2
    return norms_and_gates + 2 * d * inner + 2 * latent_width * grouped + 3 * d * decoder.mlp


def resampler_parameters(resampler: ResamplerConfig, vision_width: int) -> int:
    """Input norm and projection, slot embedding, queries, layers (attention 4w², feed-forward 8w²), final norm."""
    w = resampler.width
    layer = 12 * w * w + 3 * 2 * w
    inputs = 2 * vision_width + vision_width * w + (resampler.frame_slots + resampler.queries) * w
    return inputs + resampler.depth * layer + 2 * w


def norms_and_projections_parameters(model: ModelConfig) -> int:
    """Final and text norm, text projection, attention pool, video projection, logit scale."""
    d, w, e = model.decoder.width, model.resampler.width, model.embedding
    pool = w + 4 * w * w + 2 * w
    return d + d + d * e + pool + w * e + 1


def encoder_parameters(vision: VisionConfig) -> int:
    """CLIP vision tower: class token, patch convolution without bias, positions, outer norms, layers with biases."""
    if vision.convolutional:
        return EFFICIENTNET_PARAMETERS
    w = vision.width
    attention = 4 * (w * w + w)
    mlp = 2 * w * vision.mlp + vision.mlp + w
    embeddings = w + 3 * vision.patch**2 * w + (vision.patches + 1) * w
    return embeddings + 2 * 2 * w + vision.depth * (attention + mlp + 2 * 2 * w)
