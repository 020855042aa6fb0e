"""Seconds of one transformer layer on one GPU of a tensor-parallel group: products, attention, passes, traffic."""

from dataclasses import dataclass

from xgenvideo.plan.hardware import Cluster
from xgenvideo.plan.kernels import BF16_BYTES, all_reduce, attention, matmul, memory_pass
from xgenvideo.plan.rates import Rates

BACKWARD_PASSES = 1.6  # passes over activations in the backward for each one in the forward


@dataclass(frozen=True)
class Software:
    """What a training framework does that shows in time. One value a framework; no free numbers.

    `kernels`: kernels that a layer's forward launches. `passes`: reads and writes of hidden states by norms,
    dropout and residual sums, forward. `zero`: 0 none, 1 optimizer sharded, 2 or 3 FSDP (gradients, weights too).
    """

    attention: str
    kernels: int
    passes: int = 10
    eager: bool = False
    sequence_parallel: bool = True
    hides_tensor: bool = False
    overlaps_data: bool = False
    overlaps_messages: bool = False
    fused_accumulation: bool = True
    zero: int = 1


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one layer. `inner` is query heads x head size, `grouped` the same of keys and values."""

    width: int
    heads: int
    inner: int
    grouped: int
    mlp: int
    gated: bool

    def parameters(self, tensor: int = 1) -> float:
        """Matrix parameters on one of `tensor` GPUs."""
        attention_weights = 2 * self.width * self.inner + 2 * self.width * self.grouped
        return (attention_weights + (3 if self.gated else 2) * self.width * self.mlp) / tensor


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer and microbatch. `linear`, `attention` and `passes` are the forward's, of `forward`."""

    forward: float
    backward: float
    linear: float
    attention: float
    passes: float

    def recomputed(self, recompute: str) -> float:
        """Seconds of doing the forward again: full, attention (its core alone), half (every other product), none."""
        again = {"full": self.forward, "attention": self.attention, "half": 0.5 * self.linear + self.passes, "none": 0}
        return float(again[recompute])


@dataclass(frozen=True)
class Batch:
    """What one microbatch brings to a GPU: `rows` of activations, attending to `keys`; fp8 products or bf16."""

    rows: int
    keys: int
    tensor: int
    context: int = 1
    fp8: bool = False


def layer_time(cluster: Cluster, rates: Rates, software: Software, shape: LayerShape, batch: Batch) -> LayerTime:
    """Seconds of one layer's forward and backward for one microbatch."""
    linear = linear_seconds(cluster, rates, shape, batch)
    heads = shape.heads / batch.tensor
    scores, scores_back = attention(
        cluster, rates, software.attention, batch.rows, batch.keys, shape.inner // batch.tensor, heads, causal=True
    )
    passes = memory_pass(cluster, rates, passed_bytes(software, shape, batch)) * (rates.eager if software.eager else 1)
    launched = software.kernels * rates.kernel * 1e-6
    shown = 1 - rates.hidden_tensor if software.hides_tensor else 1.0
    traffic = 2 * shown * all_reduce(cluster, rates, BF16_BYTES * batch.rows * shape.width, batch.tensor)
    exchange = _context_seconds(cluster, rates, shape, batch, scores)
    return LayerTime(
        forward=linear + scores + passes + launched + traffic + exchange,
        backward=2 * linear + scores_back + BACKWARD_PASSES * passes + 2 * launched + traffic + 2 * exchange,
        linear=linear,
        attention=scores,
        passes=passes,
    )


def linear_seconds(cluster: Cluster, rates: Rates, shape: LayerShape, batch: Batch) -> float:
    """Forward seconds of the four (or fewer, fused) matrix products of a layer."""
    tensor, rows = batch.tensor, batch.rows
    inner, mlp = shape.inner // tensor, shape.mlp // tensor
    head_size = shape.inner // shape.heads
    grouped = max(shape.grouped // tensor, head_size)
    products = (
        (inner + 2 * grouped, shape.width),
        (shape.width, inner),
        ((2 if shape.gated else 1) * mlp, shape.width),
        (shape.width, mlp),
    )
    return sum(matmul(cluster, rates, rows, columns, deep, batch.fp8) for columns, deep in products)


def passed_bytes(software: Software, shape: LayerShape, batch: Batch) -> float:
    """Bytes of the forward's passes over hidden states and over the MLP's inner activations."""
    width = shape.width / batch.tensor if software.sequence_parallel else shape.width
    inner = (3 if shape.gated else 2) * shape.mlp / batch.tensor
    return BF16_BYTES * batch.rows * (software.passes * width + inner)


def _context_seconds(cluster: Cluster, rates: Rates, shape: LayerShape, batch: Batch, scores: float) -> float:
    """Ring attention's exchange of keys and values: hidden behind the scores as far as these last, a tenth shows."""
    if batch.context == 1:
        return 0.0
    if batch.tensor * batch.context <= cluster.gpus_per_node:
        bandwidth = cluster.nvlink_one_way * rates.nvlink
    else:
        bandwidth = cluster.node_bytes_per_second / cluster.gpus_per_node * rates.network
    grouped = max(shape.grouped // batch.tensor, shape.inner // shape.heads)
    seconds = 2 * BF16_BYTES * batch.rows * grouped * (batch.context - 1) / bandwidth
    return max(0.0, seconds - scores) + 0.1 * seconds
