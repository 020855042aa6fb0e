"""Memory of the fullest GPU of a plain language model's run: what the published runs give, and how far off this is.

State, checkpointed or kept activations in flight, one layer at work, logits on the last stage; then what the allocator
and the runtime take, the two figures here that are fitted (on BLOOM's and torchtitan's published sizes).
"""

from dataclasses import dataclass

from xgenvideo.plan.textrun import FSDP, TextRun, stage_layers

GIBIBYTE = 2.0**30
MASTER_AND_MOMENTS_BYTES = 12.0
LOGIT_BYTES = 12.0  # bf16 logits, their fp32 copy, fp32 gradient and the loss's own
# Fitted on the published sizes of `make planner-report`: what the caching allocator takes beyond what is counted, for
# state, which stays, and for activations, which come and go; and the reduction buckets of Megatron-DeepSpeed.
STATE_SPARE = 0.10
ACTIVATION_SPARE = 0.32
BUCKET_BYTES = 5.5 * GIBIBYTE
RUNTIME_BYTES = 2 * GIBIBYTE  # context and collective channels
HALF_KEPT = 0.38  # share of a layer's activations that every other product's recomputation still keeps
MARGIN = 0.09  # on top of the estimate, so that a plan that fits does fit


@dataclass(frozen=True)
class TextMemory:
    """Bytes on the fullest GPU by kind."""

    state: float
    kept: float
    working: float
    logits: float
    buckets: float

    @property
    def estimate(self) -> float:
        """The best estimate: what a measurement would most likely show."""
        moving = (self.kept + self.working) * (1 + ACTIVATION_SPARE) + self.logits * (1 + STATE_SPARE)
        return self.state * (1 + STATE_SPARE) + moving + self.buckets + RUNTIME_BYTES

    @property
    def total(self) -> float:
        """With the margin: what to plan with."""
        return self.estimate * (1 + MARGIN)


def text_memory(run: TextRun) -> TextMemory:
    """Bytes on the fullest GPU of `run`: the first pipeline stage's or the last's, whichever holds more."""
    layer = layer_bytes(run)
    held = 2.0 * run.rows * run.shape.width / (run.tensor if run.software.sequence_parallel else 1)
    each = {"full": held, "half": HALF_KEPT * layer, "attention": layer - score_bytes(run), "none": layer}[
        run.recompute
    ]
    working = (layer if run.recompute != "none" else 0.0) + _gathered(run)
    logits = run.rows * run.vocab / run.tensor * LOGIT_BYTES
    layers = stage_layers(run)
    waiting = in_flight(run)
    state, buckets = state_bytes(run), 0.0 if run.software.fused_accumulation else BUCKET_BYTES
    first = TextMemory(state, layers[0] * waiting * each, working, logits if run.pipeline == 1 else 0.0, buckets)
    last = TextMemory(state, layers[-1] * each, working, logits, buckets)
    return max(first, last, key=lambda memory: memory.total)


def state_bytes(run: TextRun) -> float:
    """Weights, gradients, fp32 masters and AdamW's moments."""
    ranks, zero, held = run.data * run.context, run.software.zero, run.parameters()
    if zero in FSDP and run.pipeline == 1:
        # Masters and moments 12, gradients 4, and at zero 2 the whole bf16 weights beside them.
        return held * ((MASTER_AND_MOMENTS_BYTES + 4) / ranks + (2 if zero == min(FSDP) else 0))
    gradients = 4.0 if run.software.fused_accumulation else 2.0
    return held * (2 + gradients + MASTER_AND_MOMENTS_BYTES / (ranks if zero >= 1 else 1))


def _gathered(run: TextRun) -> float:
    """Two layers' weights that FSDP holds gathered, with one layer's whole gradients."""
    if run.software.zero not in FSDP or run.pipeline > 1:
        return 0.0
    return 3 * 2.0 * run.shape.parameters(run.tensor)


def in_flight(run: TextRun) -> float:
    """Microbatches whose activations the first stage holds under (interleaved) 1F1B, in whole-rank units."""
    if run.pipeline == 1:
        return 1.0
    waiting = run.pipeline + (run.pipeline - 1) / run.virtual if run.virtual > 1 else float(run.pipeline)
    return min(float(run.microbatches), waiting)


def layer_bytes(run: TextRun) -> float:
    """What one layer saves for its backward for one microbatch (Korthikanti et al. 2022, arXiv 2205.05198, table 2)."""
    shape, tensor = run.shape, run.tensor
    own = 2 * (2 * shape.inner + 2 * shape.grouped) + 2 * shape.mlp * (3 if shape.gated else 2)
    hidden = 2 * 4 * shape.width
    return run.rows * (own / tensor + hidden / (tensor if run.software.sequence_parallel else 1)) + score_bytes(run)


def score_bytes(run: TextRun) -> float:
    """Scores, probabilities and dropout mask of unfused attention."""
    if run.software.attention != "fused_softmax":
        return 0.0
    return 5.0 * run.shape.heads / run.tensor * run.rows * run.sequence
