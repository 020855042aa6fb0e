"""Seconds of one step of a plain language model's training run: what the published runs are, and what rates are fit on.

The closed form: every microbatch on the slowest pipeline stage, one pass through the others to fill and drain, then
what of the gradient traffic is not hidden, the optimizer, and the wait for the slowest node.
"""

import math
from dataclasses import dataclass

from xgenvideo.plan.hardware import Cluster
from xgenvideo.plan.kernels import BF16_BYTES, matmul, memory_pass, message, ring_bandwidth
from xgenvideo.plan.layer import Batch, LayerShape, Software, layer_time
from xgenvideo.plan.rates import Rates

GRADIENT_BYTES = 4.0
OPTIMIZER_BYTES = 30.0  # read and written for each parameter by AdamW in mixed precision
FSDP = (2, 3)


@dataclass(frozen=True)
class TextRun:
    """A run's model, layout and batch. `virtual`: chunks a pipeline rank holds; `sequences`: in a microbatch."""

    name: str
    cluster: Cluster
    software: Software
    shape: LayerShape
    layers: int
    vocab: int
    sequence: int
    batch: int
    sequences: int
    tensor: int
    pipeline: int
    virtual: int
    context: int
    data: int
    fp8: bool
    recompute: str

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def microbatches(self) -> int:
        """Microbatches that a replica takes one after another in a step."""
        return max(1, round(self.batch / (self.data * self.sequences)))

    @property
    def rows(self) -> int:
        """Tokens of one microbatch on one GPU."""
        return self.sequences * self.sequence // self.context

    def parameters(self) -> float:
        """Parameters on the GPU that has most: its layers, and one embedding (or head)."""
        return (
            self.shape.parameters(self.tensor) * self.layers / self.pipeline
            + self.vocab * self.shape.width / self.tensor
        )

    def model_flops(self) -> float:
        """FLOPs of one step by the most used convention: full square attention, no recomputation, head included."""
        weights = self.layers * self.shape.parameters() + self.vocab * self.shape.width
        scores = 2 * self.layers * self.sequence * self.shape.inner
        return 6.0 * self.batch * self.sequence * (weights + scores)


@dataclass(frozen=True)
class TextStep:
    """Seconds of one step by part; their sum is the step. `fill` is the pipeline's bubble, `head` within `stages`."""

    stages: float
    fill: float
    messages: float
    data: float
    optimizer: float
    jitter: float

    @property
    def total(self) -> float:
        """The whole step."""
        return self.stages + self.fill + self.messages + self.data + self.optimizer + self.jitter


def text_step(run: TextRun, rates: Rates) -> TextStep:
    """Predict one step of `run`."""
    one = Batch(run.rows, run.sequence, run.tensor, run.context, run.fp8)
    layer = layer_time(run.cluster, rates, run.software, run.shape, one)
    head = head_seconds(run.cluster, rates, run.rows, run.shape.width, run.vocab, run.tensor)
    each = layer.forward + layer.backward + layer.recomputed(run.recompute) + accumulation_seconds(run, rates)
    ranks = [count * each for count in stage_layers(run)]
    ranks[-1] += head
    stages = run.microbatches * max(ranks)
    fill = (sum(ranks) - max(ranks)) / run.virtual
    messages = _message_seconds(run, rates)
    if run.pipeline == 1 and run.software.zero in FSDP:
        data, optimizer = _sharded(run, rates, stages)
    else:
        data, optimizer = _replicated(run, rates)
    busy = stages + fill + messages + data + optimizer
    jitter = busy * rates.jitter * 1e-2 * math.log2(max(1.0, run.gpus / run.cluster.gpus_per_node))
    return TextStep(stages, fill, messages, data, optimizer, jitter)


def head_seconds(cluster: Cluster, rates: Rates, rows: int, width: int, vocab: int, tensor: int) -> float:
    """Forward and backward of the head and the loss for one microbatch, in bf16."""
    products = 3 * matmul(cluster, rates, rows, vocab // tensor, width)
    return products + memory_pass(cluster, rates, rates.loss_bytes * rows * vocab / tensor)


def stage_layers(run: TextRun) -> list[int]:
    """Layers of each pipeline rank. Where they divide only with the embedding and head counted, the ends hold fewer."""
    chunks = run.pipeline * run.virtual
    if run.layers % chunks == 0 or run.pipeline == 1:
        return [run.layers // run.pipeline] * run.pipeline
    if (run.layers + 2) % chunks == 0:
        held = [(run.layers + 2) // run.pipeline] * run.pipeline
        held[0] -= 1
        held[-1] -= 1
        return held
    return [run.layers // run.pipeline + (rank < run.layers % run.pipeline) for rank in range(run.pipeline)]


def accumulation_seconds(run: TextRun, rates: Rates) -> float:
    """A layer's gradients added to those of earlier microbatches by kernels of their own; none where products do it."""
    software = run.software
    if software.fused_accumulation or run.microbatches == 1 or (software.zero in FSDP and run.pipeline == 1):
        return 0.0
    return memory_pass(run.cluster, rates, rates.accumulate_bytes * run.shape.parameters(run.tensor))


def _message_seconds(run: TextRun, rates: Rates) -> float:
    """Pipeline messages that nothing hides: two a chunk and microbatch, and those of filling the pipeline.

    A tensor group sends its message in parts; without sequence parallelism the receiver gathers them over NVLink.
    """
    if run.pipeline == 1:
        return 0.0
    hidden = BF16_BYTES * run.rows * run.shape.width
    one = message(run.cluster, rates, hidden / run.tensor)
    if run.tensor > 1 and not run.software.sequence_parallel:
        one += hidden / (run.cluster.nvlink_one_way * rates.nvlink)
    shown = rates.exposed_messages_overlapped if run.software.overlaps_messages else rates.exposed_messages
    each = 2 * run.virtual * shown * one
    return (run.microbatches + (run.pipeline - 1) / run.virtual) * each


def _sharded(run: TextRun, rates: Rates, stages: float) -> tuple[float, float]:
    """FSDP: weights gathered for forward and backward and gradients scattered in every microbatch, beside compute."""
    held, microbatches = run.parameters(), run.microbatches
    gathers = 3 * microbatches if run.software.zero == max(FSDP) else 2 + microbatches
    ranks = run.data * run.context
    traffic = gathers * BF16_BYTES * held / ring_bandwidth(run.cluster, rates, 1, run.tensor * ranks)
    traffic += 3 * microbatches * run.layers * rates.hop * 1e-6 * (run.data - 1)
    data = max(0.0, traffic - stages) + rates.exposed_shards * min(traffic, stages)
    return data, memory_pass(run.cluster, rates, OPTIMIZER_BYTES * held / ranks)


def _replicated(run: TextRun, rates: Rates) -> tuple[float, float]:
    """Gradients reduced over the replicas once a step (and weights gathered back), then the optimizer."""
    held, ranks = run.parameters(), run.data * run.context
    data = 0.0
    if ranks > 1:
        shown = rates.exposed_data if run.software.overlaps_data else 1.0
        bandwidth = ring_bandwidth(run.cluster, rates, run.tensor, ranks)
        data = shown * GRADIENT_BYTES * held * (ranks - 1) / ranks / bandwidth
    shards = ranks if run.software.zero >= 1 else 1
    return data, memory_pass(run.cluster, rates, OPTIMIZER_BYTES * held / shards)
