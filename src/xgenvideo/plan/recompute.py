"""What each decoder block keeps for its backward: as `train.recompute` says, or chosen so that a rank's budget holds.

"none" keeps everything, "selective" its input and the results of matrix products and attention, "full" its input alone.
"""

from dataclasses import dataclass

from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.plan.memory import GIBIBYTE, block_activation_bytes, compute_bytes
from xgenvideo.plan.pipeline import Stage, by_rank, cut, microbatches_in_flight

SETTING = "train.recompute_budget_gib"


@dataclass(frozen=True)
class Block:
    """A decoder block under the name that its pipeline stage gives it: "self_3", "cross_4"."""

    name: str
    cross: bool


def recompute_ways(config: RunConfig) -> dict[str, str]:
    """Name of every decoder block -> "none", "selective" or "full".

    Under a budget each pipeline rank turns its blocks to "selective" one by one until it fits, then to "full": the
    first costs no matrix product, the second the block's forward. Raises ConfigError when nothing fits.
    """
    layout = config.layout
    stages = cut(config.model, config.data.text_tokens, layout.pipeline * layout.virtual_stages)
    ways: dict[str, str] = {}
    for rank, chunks in enumerate(by_rank(stages, layout)):
        blocks = [block for stage in chunks for block in blocks_of(stage)]
        if config.train.recompute_budget_gib:
            ways |= _fitting(config, rank, blocks)
        else:
            ways |= {block.name: config.train.recompute for block in blocks}
    return ways


def blocks_of(stage: Stage) -> list[Block]:
    """The blocks of a stage in their order."""
    order = [(layer, Block(f"cross_{layer}", cross=True)) for layer in stage.cross]
    order += [(layer, Block(f"self_{layer}", cross=False)) for layer in stage.layers]
    return [block for _, block in sorted(order, key=lambda found: (found[0], not found[1].cross))]


def _fitting(config: RunConfig, rank: int, blocks: list[Block]) -> dict[str, str]:
    ways = {block.name: "none" for block in blocks}
    budget = config.train.recompute_budget_gib * GIBIBYTE
    for way in ("selective", "full"):
        for block in blocks:
            if activation_bytes(config, rank, blocks, ways) <= budget:
                return ways
            ways[block.name] = way
    least = activation_bytes(config, rank, blocks, ways)
    if least > budget:
        rule = f"pipeline rank {rank} needs {least / GIBIBYTE:.3g} GiB for the activations of its decoder blocks"
        raise ConfigError(SETTING, config.train.recompute_budget_gib, f"{rule} even where all are recomputed")
    return ways


def activation_bytes(config: RunConfig, rank: int, blocks: list[Block], ways: dict[str, str]) -> float:
    """Most bytes that a rank of pipeline rank `rank` holds for the backward of its blocks, by the planner's formula.

    What is kept of every microbatch in flight, and whole the largest block that is being computed again.
    """
    layout = config.layout
    microbatches = config.train.global_batch_pairs // (layout.data * layout.microbatch_pairs)
    kept = sum(kept_bytes(config, block.cross, ways[block.name]) for block in blocks)
    again = [kept_bytes(config, block.cross, "none") for block in blocks if ways[block.name] != "none"]
    return layout.microbatch_pairs * (
        microbatches_in_flight(layout, microbatches, rank) * kept + max(again, default=0.0)
    )


def kept_bytes(config: RunConfig, cross: bool, way: str) -> float:
    """Bytes that one block keeps between its forward and its backward, for one pair, per tensor rank."""
    decoder, tensor, size = config.model.decoder, config.layout.tensor, compute_bytes(config)
    tokens, queries = config.data.text_tokens, config.model.resampler.queries
    if way == "none":
        return block_activation_bytes(config, tokens, cross)
    inputs = float(size * tokens * decoder.width / tensor)
    if way == "full":
        return inputs
    inner, grouped = decoder.heads * decoder.head_size, decoder.kv_heads * decoder.head_size
    # Products that are cut by rows are whole on each rank before they are summed; the others are cut.
    divided = tokens * (2 * inner + 2 * decoder.mlp) + (queries if cross else tokens) * 2 * grouped
    row_sums = 4 * tokens * decoder.heads / tensor
    return inputs + size * (2 * tokens * decoder.width + divided / tensor) + row_sums
