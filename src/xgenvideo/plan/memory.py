"""Memory of one rank of every pipeline stage, by kind: the tensors that the engine keeps, and two stated margins.

Counted for the design's engine: bf16 working weights, gradients added up in fp32 until the last microbatch (FSDP2 with
resharding off, so unsharded), fp32 master weights and AdamW's two moments sharded over the replicas (ZeRO-1), fused
attention, no recomputation. What the allocator wastes and the runtime takes is a margin, not a calculation.
"""

from dataclasses import dataclass

from xgenvideo.config import DecoderConfig, RunConfig
from xgenvideo.plan.parameters import (
    cross_block_parameters,
    encoder_parameters,
    norms_and_projections_parameters,
    resampler_parameters,
    self_block_parameters,
)
from xgenvideo.plan.pipeline import Stage, by_rank, cut, microbatches_in_flight

GIBIBYTE = 2.0**30
RUNTIME_BYTES = 2 * GIBIBYTE  # assumption: CUDA context, NCCL channels and cuBLAS workspaces
FRAGMENTATION = 0.05  # assumption: what the caching allocator holds beyond what is in use
GRADIENT_BYTES = 4
MOMENTS_BYTES = 8
MASTER_BYTES = 4
LOGIT_PIECES = 8
HALF_KEPT = 0.38  # as in textmemory.py, where published sizes say so


@dataclass(frozen=True)
class RankMemory:
    """Bytes on one rank of pipeline stage `rank`, by kind."""

    rank: int
    stages: tuple[str, ...]
    weights: float
    gradients: float
    optimizer: float
    encoder: float
    visual_activations: float
    decoder_activations: float
    buffers: float

    @property
    def counted(self) -> float:
        """The sum of the kinds."""
        state = self.weights + self.gradients + self.optimizer + self.encoder
        return state + self.visual_activations + self.decoder_activations + self.buffers

    @property
    def total(self) -> float:
        """With the two margins: runtime and fragmentation."""
        return self.counted * (1 + FRAGMENTATION) + RUNTIME_BYTES


def memory(
    config: RunConfig, text_tokens: int, encoder_in_stage_0: bool = False, recompute: str = "none"
) -> tuple[RankMemory, ...]:
    """Bytes per rank for every pipeline stage, pairs at their full `data.frames` and `text_tokens` (per pair).

    `recompute`: none keeps all that the backward needs, half every other product's output, full a block's input alone.
    """
    layout = config.layout
    stages = cut(config.model, text_tokens, layout.pipeline * layout.virtual_stages)
    return tuple(
        _rank_memory(config, text_tokens, rank, chunks, encoder_in_stage_0, recompute)
        for rank, chunks in enumerate(by_rank(stages, layout))
    )


def _rank_memory(
    config: RunConfig,
    text_tokens: int,
    rank: int,
    chunks: tuple[Stage, ...],
    encoder_in_stage_0: bool,
    recompute: str,
) -> RankMemory:
    layout, size = config.layout, compute_bytes(config)
    decoder = sum(stage_parameters(config, stage) for stage in chunks) / layout.tensor
    sees_video = rank == 0 or not encoder_in_stage_0
    visual = visual_parameters(config) if sees_video else 0
    visual_ranks = layout.data * layout.tensor * (1 if encoder_in_stage_0 else layout.pipeline)
    # Weights in fp32 are their own masters on one replica; a sharded copy is kept beside them on several.
    master = 0 if config.train.precision == "fp32" and layout.data == 1 else MASTER_BYTES
    encoder = 0 if config.data.cache_features or not sees_video else encoder_parameters(config.model.vision) * size
    return RankMemory(
        rank=rank,
        stages=tuple(stage.label for stage in chunks),
        weights=size * (decoder + visual),
        gradients=GRADIENT_BYTES * (decoder + visual),
        optimizer=(MOMENTS_BYTES + master) * (decoder / layout.data + visual / visual_ranks),
        encoder=float(encoder),
        visual_activations=visual_activation_bytes(config, encoder_in_stage_0) if sees_video else 0.0,
        decoder_activations=_decoder_activation_bytes(config, text_tokens, rank, chunks, recompute),
        buffers=_buffer_bytes(config, text_tokens, chunks),
    )


def compute_bytes(config: RunConfig) -> int:
    """Bytes of one number in matrix work."""
    return {"fp64": 8, "fp32": 4, "bf16": 2}[config.train.precision]


def stage_parameters(config: RunConfig, stage: Stage) -> int:
    """Parameters of one chunk of the decoder, before tensor parallelism."""
    decoder = config.model.decoder
    ends = (int(stage.embedding) + int(stage.head)) * decoder.vocab * decoder.width
    return (
        ends
        + len(stage.layers) * self_block_parameters(decoder)
        + len(stage.cross) * cross_block_parameters(decoder, config.model.resampler.width)
    )


def visual_parameters(config: RunConfig) -> int:
    """Resampler, pool and projections: replicated over the ranks of the visual world."""
    model = config.model
    return resampler_parameters(model.resampler, model.vision.width) + norms_and_projections_parameters(model)


def visual_activation_bytes(config: RunConfig, encoder_in_stage_0: bool) -> float:
    """The encoder's largest moment over one pair, and the resampler's saved tensors for all pairs a rank holds.

    In a pipeline, a rank of the visual world holds its share of the replica's pairs until their latents' gradients come
    home. With the encoder in stage 0 it holds the microbatches in flight, without a pipeline the one at work.
    """
    model, layout, size = config.model, config.layout, compute_bytes(config)
    vision, resampler, frames = model.vision, model.resampler, config.data.frames
    pairs = config.train.global_batch_pairs / layout.data
    if encoder_in_stage_0 or layout.pipeline == 1:
        pairs = layout.microbatch_pairs * min(layout.pipeline, pairs / layout.microbatch_pairs)
    else:
        pairs = max(1.0, pairs / (layout.tensor * layout.pipeline))
    media = frames * vision.patches
    keys = media + resampler.queries
    features = media * vision.width
    # A layer saves its normed media, the concatenation, keys and values; the first projection its normed features.
    saved = 2 * features + media * resampler.width + resampler.depth * (media + 3 * keys) * resampler.width
    latents = resampler.depth * resampler.queries * 14 * resampler.width
    encoding = 0 if config.data.cache_features else frames * (vision.patches + 1) * (4 * vision.width + 2 * vision.mlp)
    return float(size * (pairs * (saved + latents) + encoding))


def block_activation_bytes(config: RunConfig, text_tokens: int, cross: bool) -> float:
    """Tensors that one block saves for its backward, for one pair, per tensor-parallel rank.

    With sequence parallelism all is divided by the tensor axis but the two gathered inputs of the column-parallel
    matrices (Korthikanti et al. 2022, arXiv 2205.05198, section 4). Fused attention saves inputs, output and row sums.
    """
    decoder, tensor, size = config.model.decoder, config.layout.tensor, compute_bytes(config)
    inner, grouped = decoder.heads * decoder.head_size, decoder.kv_heads * decoder.head_size
    gathered = 2 * decoder.width
    queries, media = (2 * inner, 0) if cross else (2 * inner + 2 * grouped, grouped)
    divided = 2 * decoder.width + queries + media + inner + 4 * decoder.mlp
    per_token = gathered + divided / tensor
    latents = config.model.resampler.queries * (config.model.resampler.width + 3 * grouped / tensor) if cross else 0.0
    row_sums = 4 * text_tokens * decoder.heads / tensor
    return float(size * (text_tokens * per_token + latents) + row_sums)


def _decoder_activation_bytes(
    config: RunConfig, text_tokens: int, rank: int, chunks: tuple[Stage, ...], recompute: str
) -> float:
    layout = config.layout
    microbatches = config.train.global_batch_pairs // (layout.data * layout.microbatch_pairs)
    blocks = (sum(len(stage.layers) for stage in chunks), sum(len(stage.cross) for stage in chunks))
    each = (block_activation_bytes(config, text_tokens, cross) for cross in (False, True))
    whole = sum(count * block for count, block in zip(blocks, each, strict=True))
    inputs = sum(blocks) * compute_bytes(config) * text_tokens * config.model.decoder.width / layout.tensor
    kept = {"none": whole, "half": HALF_KEPT * whole, "full": inputs}[recompute]
    # The block whose forward is being redone is there in full.
    working = 0.0 if recompute == "none" else block_activation_bytes(config, text_tokens, cross=False)
    return layout.microbatch_pairs * (microbatches_in_flight(layout, microbatches, rank) * kept + working)


def _buffer_bytes(config: RunConfig, text_tokens: int, chunks: tuple[Stage, ...]) -> float:
    """Logits on the last stage, whose gradient is written over them, and two pieces of them in fp32 (objectives.py);
    the pipeline's messages: hidden states, latents.
    """
    model, layout, size = config.model, config.layout, compute_bytes(config)
    logits = 0.0
    if any(stage.head for stage in chunks):
        logits = text_tokens * model.decoder.vocab / layout.tensor * (size + 2 * 4 / LOGIT_PIECES)
    message = size * message_numbers(model.decoder, text_tokens, model.resampler.queries * model.resampler.width)
    messages = 0 if layout.pipeline == 1 else 4 * message  # in and out, forward and backward
    return float(layout.microbatch_pairs * (logits + messages))


def message_numbers(decoder: DecoderConfig, text_tokens: int, latent_numbers: int) -> int:
    """Numbers that one pair sends from stage to stage: hidden states and the relayed latents."""
    return text_tokens * decoder.width + latent_numbers
