"""Another planner on the same rows: llm-analysis, where it is installed (pip install llm-analysis "fire<0.6").

It takes one efficiency for all matrix work, so it gets what the rows of the other families on the same kind of GPU
need in the median; calculon is not run here.
"""

import importlib.util
import logging
from collections.abc import Sequence
from statistics import median
from typing import Any

from xgenvideo.plan.published import Published
from xgenvideo.plan.textrun import TextRun

HALVINGS = 14


def installed() -> bool:
    """Whether llm-analysis can be imported."""
    return importlib.util.find_spec("llm_analysis") is not None


def llm_analysis_errors(rows: Sequence[Published]) -> dict[str, float]:
    """Per cent that llm-analysis is off, by row; rows with context parallelism, which it lacks, are left out."""
    logging.disable(logging.CRITICAL)  # it warns of every row that exceeds its own idea of memory
    seconds = {row.name: row.measured_seconds or 0.0 for row in rows}
    runs = {row.name: row.run for row in rows if row.run is not None and row.run.context == 1}
    family = {row.name: row.family for row in rows}
    needed = {name: _needed(run, seconds[name]) for name, run in runs.items()}
    errors = {}
    for name, run in runs.items():
        hopper = run.cluster.gpu.hopper
        others = [
            needed[other]
            for other, its in runs.items()
            if family[other] != family[name] and its.cluster.gpu.hopper == hopper
        ]
        if others:
            errors[name] = 100 * abs(step_seconds(run, median(others)) / seconds[name] - 1)
    logging.disable(logging.NOTSET)
    return errors


def _needed(run: TextRun, measured: float) -> float:
    """The efficiency with which it would have predicted the measured step."""
    low, high = 0.05, 1.0
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if step_seconds(run, middle) > measured else (low, middle)
    return high


def step_seconds(run: TextRun, efficiency: float) -> float:
    """Seconds of one step by llm-analysis."""
    analysis = importlib.import_module("llm_analysis.analysis")
    config = importlib.import_module("llm_analysis.config")
    shape, gpu = run.shape, run.cluster.gpu
    model = config.ModelConfig(
        "row",
        run.layers,
        shape.heads,
        shape.width,
        run.vocab,
        run.sequence,
        shape.grouped * shape.heads // shape.inner,
        ffn_embed_dim=shape.mlp,
        expansion_ratio=shape.mlp / shape.width,
    )
    peak = gpu.fp8_flops_per_second if run.fp8 else gpu.bf16_flops_per_second
    # Memory enough for any row: what is asked for is time.
    card = config.GPUConfig(
        "row", 1e4, gpu.memory_bytes_per_second / 1e9, run.cluster.nvlink_one_way / 1e9, 8e-6, peak / 1e12
    )
    layout = config.ParallelismConfig(tp_size=run.tensor, pp_size=run.pipeline, dp_size=run.data, sp_size=run.tensor)
    planner = analysis.LLMAnalysis(model, card, config.DtypeConfig(), layout, flops_efficiency=efficiency)
    kinds = analysis.ActivationRecomputation
    found: dict[str, Any] = planner.training(
        batch_size_per_gpu=run.sequences,
        gradient_accumulation_steps=run.microbatches,
        global_batch_size=run.microbatches * run.sequences * run.data,
        seq_len=run.sequence,
        total_num_tokens=10**12,
        activation_recomputation=kinds.FULL if run.recompute == "full" else kinds.NONE,
        ds_zero=list(analysis.DSZeRO)[run.software.zero],
        flash_attn=run.software.attention != "fused_softmax",
        mlp_gated_linear_units=shape.gated,
    )
    return float(found["latency_per_iter"])
