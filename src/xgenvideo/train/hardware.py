"""FLOPs that a step computes beside the model's own: what HFU counts and MFU does not."""

from xgenvideo.config import RunConfig
from xgenvideo.parallel.layout import Layout
from xgenvideo.plan.flops import pair_forward
from xgenvideo.plan.recompute import recompute_ways


def extra_flops(config: RunConfig, text_tokens: int, frames: float) -> float:
    """Matrix FLOPs of a step of all ranks, beside the training FLOPs of its pairs with attention over the full square.

    They are the pass for the text embeddings, what is made again for the backward, and the contrastive loss. Attention
    that a fused kernel makes again inside its own backward is not counted.
    """
    return _text_pass(config, text_tokens) + _again(config, text_tokens, frames) + _contrast(config)


def _text_pass(config: RunConfig, text_tokens: int) -> float:
    """The lower half without gradient, once more; a replica's single microbatch needs none."""
    layout, decoder, pairs = config.layout, config.model.decoder, config.train.global_batch_pairs
    if pairs == layout.data * layout.microbatch_pairs:
        return 0.0
    lower = decoder.lower_layers * pair_forward(config.model, text_tokens, 0).self_block_quadratic
    return pairs * (lower + 2 * decoder.width * config.model.embedding)


def _again(config: RunConfig, text_tokens: int, frames: float) -> float:
    """Decoder blocks whose recomputation is "full", and the trunk of ranks that resample several microbatches.

    Recomputing stops at the last value that is needed, which leaves out a self block's last product.
    """
    layout, model, pairs = Layout.of(config.layout), config.model, config.train.global_batch_pairs
    decoder, forward = model.decoder, pair_forward(model, text_tokens, frames)
    shares = [len(layout.share(number, pairs)) for number in range(layout.ranks)]
    resampled = sum(share for share in shares if share > config.layout.microbatch_pairs)
    trunk = forward.resampler + forward.pool_and_projections - 2 * decoder.width * model.embedding
    full = [name for name, way in recompute_ways(config).items() if way == "full"]
    crosses = sum(name.startswith("cross_") for name in full)
    last = 2.0 * text_tokens * decoder.width * decoder.mlp
    blocks = (len(full) - crosses) * (forward.self_block_quadratic - last) + crosses * forward.cross_block
    return resampled * trunk + pairs * blocks


def _contrast(config: RunConfig) -> float:
    """Scores of all pairs with each other and their two gradients, on every rank."""
    pairs = pool = config.train.global_batch_pairs
    if config.objective.contrastive_scope == "microbatch":
        pool = config.layout.data * config.layout.microbatch_pairs
    return 3.0 * 2.0 * pairs * pool * config.model.embedding * config.layout.world
