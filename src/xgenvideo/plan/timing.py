"""Step time in closed form: pipeline, bubble, text pass and visual phase, at an assumed rate of a busy GPU.

The rate is an assumption, not a measurement and not a result: kernels and exposed communication together are taken to
run at ASSUMED_BUSY_SHARE of the peak. The rest is derived: uneven stages, bubble, where the encoder stands.
"""

from dataclasses import dataclass

from xgenvideo.config import RunConfig
from xgenvideo.plan.flops import BACKWARD_AND_FORWARD, frame_flops, pair_forward
from xgenvideo.plan.hardware import Gpu
from xgenvideo.plan.pipeline import by_rank, cut, fill_share

# Assumption. Dense training on H100 is published at 38 to 47 % of peak all told, bubble included (Llama 3, arXiv
# 2407.21783, table 4: 38 to 43 %; the Megatron-LM README: up to 47 %); a rank that has work is somewhat above.
ASSUMED_BUSY_SHARE = 0.5

PLACEMENTS = ("all_ranks", "stage_0")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by phase. `visual` is zero when the encoder's work is inside stage 0."""

    placement: str
    visual: float
    text_pass: float
    decoder: float

    @property
    def total(self) -> float:
        """The phases follow each other: their overlap is not modelled."""
        return self.visual + self.text_pass + self.decoder


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


def step_time(
    config: RunConfig, gpu: Gpu, text_tokens: int, placement: str = "all_ranks", busy_share: float = ASSUMED_BUSY_SHARE
) -> StepTime:
    """Seconds of one step on the config's layout, `placement` one of PLACEMENTS; all pairs at full length."""
    layout = config.layout
    microbatches = config.train.global_batch_pairs // (layout.data * layout.microbatch_pairs)
    # A replica's tensor-parallel ranks work on one stage together.
    seconds_per_flop = layout.microbatch_pairs / (busy_share * gpu.bf16_flops_per_second * layout.tensor)
    ranks = by_rank(cut(config.model, text_tokens, layout.pipeline * layout.virtual_stages), layout)
    train = [BACKWARD_AND_FORWARD * sum(stage.forward_flops for stage in chunks) for chunks in ranks]
    lower = [sum(stage.lower_forward_flops for stage in chunks) for chunks in ranks]
    visual = visual_flops(config)
    spread = 0.0
    if placement == "stage_0":
        train[0] += visual
    else:
        spread = microbatches * visual / layout.pipeline
    share = fill_share(layout)
    text_pass = _pipeline_flops(lower, microbatches, share) if needs_text_pass(config) else 0.0
    decoder = _pipeline_flops(train, microbatches, share)
    return StepTime(placement, spread * seconds_per_flop, text_pass * seconds_per_flop, decoder * seconds_per_flop)


def _pipeline_flops(ranks: list[float], microbatches: int, share: float) -> float:
    """Work on the critical path: every microbatch on the slowest rank, and `share` of one pass through the others."""
    return microbatches * max(ranks) + share * (sum(ranks) - max(ranks))


def encoder_slow_down(config: RunConfig, text_tokens: int) -> float:
    """How many times slower the pipeline's steady state is with the visual part in stage 0 than over all ranks.

    For an even decoder cut and many microbatches, so it depends on the model and the text length alone.
    """
    stages, visual = config.layout.pipeline, visual_flops(config)
    pair = pair_forward(config.model, text_tokens, config.data.frames)
    decoder = config.model.decoder
    blocks = decoder.depth * pair.self_block_causal + decoder.cross_blocks * pair.cross_block
    stage = BACKWARD_AND_FORWARD * (blocks + pair.head) / stages
    return (visual + stage) / (visual / stages + stage)
