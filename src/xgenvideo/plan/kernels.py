"""Seconds of the single things a GPU does: a matrix product, attention, a pass over memory, a collective, a message.

Pure functions of shapes, a Cluster and Rates. Bytes and FLOPs are counted; what a machine reaches is in Rates.
"""

import math

from xgenvideo.plan.hardware import Cluster
from xgenvideo.plan.rates import Rates

TILE = (128, 256)  # rows and columns of the output that one multiprocessor makes at a time
BF16_BYTES = 2.0


def clock(cluster: Cluster, rates: Rates) -> float:
    """The share of its clock that a GPU under a power limit keeps."""
    share: float = cluster.gpu.power_share**rates.clock_by_power
    return share


def matmul(cluster: Cluster, rates: Rates, rows: float, columns: float, inner: float, fp8: bool = False) -> float:
    """Seconds of [rows, inner] x [inner, columns] in bf16, or in fp8 with its casts to and from memory in bf16.

    The last wave of tiles is partly empty, a tile's start and end are not, and operands come through memory.
    """
    gpu = cluster.gpu
    tiles = math.ceil(rows / TILE[0]) * math.ceil(columns / TILE[1])
    waves = math.ceil(tiles / gpu.multiprocessors) * gpu.multiprocessors
    filled = (rows * columns / (TILE[0] * TILE[1])) / waves
    efficiency: float = filled**rates.waves * inner / (inner + rates.inner)
    share = (rates.matmul_hopper if gpu.hopper else rates.matmul_ampere) * clock(cluster, rates)
    peak = gpu.bf16_flops_per_second
    if fp8 and gpu.hopper:
        peak, share = gpu.fp8_flops_per_second, share * rates.fp8
    moved = BF16_BYTES * (rows * inner + inner * columns + rows * columns)
    return 2.0 * rows * columns * inner / (peak * share * efficiency) + memory_pass(cluster, rates, moved)


def memory_pass(cluster: Cluster, rates: Rates, moved_bytes: float) -> float:
    """Seconds to move `moved_bytes` through the GPU's memory."""
    return moved_bytes / (cluster.gpu.memory_bytes_per_second * rates.memory)


def attention(
    cluster: Cluster, rates: Rates, kind: str, queries: float, keys: float, width: float, heads: float, causal: bool
) -> tuple[float, float]:
    """Forward and backward seconds of attention between `queries` and `keys` (numbers along the sequence).

    `width` is heads x head size on this GPU; `queries` counts the whole batch, `keys` one sequence. `kind`:
    fused_softmax (scores through memory), flash, cudnn. Flash kernels skip the masked half of a causal square and redo
    the scores in the backward: 2.5 forwards.
    """
    gpu = cluster.gpu
    flops = 4.0 * queries * keys * width
    if kind == "fused_softmax":
        rate = gpu.bf16_flops_per_second * rates.batched * clock(cluster, rates)
        if round(width / heads) % 8:
            rate *= rates.unaligned
        softmax = memory_pass(cluster, rates, BF16_BYTES * heads * queries * keys * rates.softmax_passes)
        return flops / rate + softmax, 2 * flops / rate + 1.4 * softmax
    share = rates.cudnn_hopper if kind == "cudnn" else rates.flash_hopper
    if not gpu.hopper:
        share = rates.flash_ampere
    forward = flops * (0.5 if causal else 1.0) / (gpu.bf16_flops_per_second * share * clock(cluster, rates))
    return forward, 2.5 * forward


def network_share(cluster: Cluster, rates: Rates) -> float:
    """The share of a node's adapters that collectives reach."""
    return rates.omni_path if cluster.omni_path else rates.network


def all_reduce(cluster: Cluster, rates: Rates, moved_bytes: float, ranks: int) -> float:
    """Seconds to all-reduce `moved_bytes` over `ranks` neighbouring GPUs (also an all-gather and a reduce-scatter).

    Within a node each GPU sends 2 (n-1)/n of it; between k nodes each node sends 2 (k-1)/k of it, at the same time.
    """
    if ranks == 1:
        return 0.0
    node = cluster.gpus_per_node
    start = 2 * rates.latency * 1e-6
    if cluster.nvlink_domain < ranks <= node:
        return 2 * (ranks - 1) / ranks * moved_bytes / (rates.bridge * 1e9) + start
    inside = min(ranks, node)
    seconds = 2 * (inside - 1) / inside * moved_bytes / (cluster.nvlink_one_way * rates.nvlink)
    if ranks > node:
        nodes = ranks / node
        between = cluster.node_bytes_per_second * network_share(cluster, rates)
        seconds = max(seconds, 2 * (nodes - 1) / nodes * moved_bytes / between)
    return seconds + start


def message(cluster: Cluster, rates: Rates, moved_bytes: float) -> float:
    """Seconds of one message to another node while every GPU of the node sends one."""
    own = cluster.node_bytes_per_second / cluster.gpus_per_node * network_share(cluster, rates)
    return moved_bytes / own + 2 * rates.latency * 1e-6


def ring_bandwidth(cluster: Cluster, rates: Rates, tensor: int, ranks: int) -> float:
    """Bytes a second of a data-parallel ring of `ranks`: `tensor` such rings share a node's adapters."""
    if tensor * ranks <= cluster.gpus_per_node:
        return cluster.nvlink_one_way * rates.nvlink
    rings = min(cluster.gpus_per_node, tensor)
    return cluster.node_bytes_per_second * network_share(cluster, rates) / rings
