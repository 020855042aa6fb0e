"""Other planners on the same rows, where they can be imported.

- llm-analysis (pip install llm-analysis "fire<0.6") takes one efficiency for all matrix work, so it gets what the rows
  of the other families on the same kind of GPU need in the median.
- calculon (git clone https://github.com/calculon-ai/calculon, its folder in PYTHONPATH; version 1.0.0, commit caa4b11)
  has efficiencies of its own for an A100 and an H100, and gets only the row's network.
"""

import importlib
import importlib.util
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from xgenvideo.plan.published import Published
from xgenvideo.plan.textrun import TextRun

HALVINGS = 14
SYSTEMS = {"A100": "a100_80g", "H100": "h100_80g_nvl8"}
RECOMPUTED = {"full": "full", "attention": "attn_only", "none": "none"}
ROOM_GIB = 10_000  # memory enough for any row: what is asked for is time


def installed(package: str) -> bool:
    """Whether another planner can be imported."""
    return importlib.util.find_spec(package) is not None


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


def calculon_errors(rows: Sequence[Published]) -> dict[str, float]:
    """Per cent that calculon is off, by row; left out are rows that it cannot describe.

    It has neither gated feed-forward layers, grouped keys nor context parallelism, and takes 16-bit numbers here.
    """
    calculon = importlib.import_module("calculon")
    errors = {}
    for row in rows:
        run = row.run
        if run is None or run.recompute not in RECOMPUTED or not _describable(run):
            continue
        model = calculon.Llm(calculon.Llm.Application(_application(run)), logging.getLogger("calculon"))
        system = calculon.System(_system(run, Path(str(calculon.__file__)).parents[1] / "systems"))
        try:
            model.compile(system, calculon.Llm.Execution.from_json(_execution(run)))
            model.run(system)
        except (AssertionError, calculon.Llm.Error):
            continue
        errors[row.name] = 100 * abs(model.get_total_time() / (row.measured_seconds or 0.0) - 1)
    return errors


def _describable(run: TextRun) -> bool:
    shape = run.shape
    return run.context == 1 and not run.fp8 and not shape.gated and shape.grouped == shape.inner


def _application(run: TextRun) -> dict[str, int]:
    shape = run.shape
    return {
        "hidden": shape.width,
        "feedforward": shape.mlp,
        "seq_size": run.sequence,
        "attn_heads": shape.heads,
        "attn_size": shape.inner // shape.heads,
        "num_blocks": run.layers,
    }


def _system(run: TextRun, folder: Path) -> dict[str, Any]:
    """Its own description of the GPU, with the row's network between nodes."""
    name = SYSTEMS["H100" if run.cluster.gpu.hopper else "A100"]
    system: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    system["mem1"]["GiB"] = system["mem2"]["GiB"] = ROOM_GIB
    inside, between = system["networks"]
    inside["must_be_filled"] = False
    between["bandwidth"] = run.cluster.node_bytes_per_second / run.cluster.gpus_per_node / 1e9
    return system


def _execution(run: TextRun) -> dict[str, Any]:
    per_node = run.cluster.gpus_per_node
    return {
        "num_procs": run.gpus,
        "tensor_par": run.tensor,
        "pipeline_par": run.pipeline,
        "data_par": run.data,
        "tensor_par_net": int(run.tensor > per_node),
        "pipeline_par_net": int(run.tensor * run.pipeline > per_node),
        "data_par_net": int(run.gpus > per_node),
        "batch_size": run.microbatches * run.sequences * run.data,
        "microbatch_size": run.sequences,
        "datatype": "float16",
        "fused_activation": True,
        "attention_type": "multihead",
        "activation_recompute": RECOMPUTED[run.recompute],
        "pipeline_interleaving": run.virtual,
        "optimizer_sharding": run.software.zero > 0 and run.data > 1,
        "tensor_par_comm_type": "rs_ag" if run.software.sequence_parallel and run.tensor > 1 else "ar",
        "tensor_par_overlap": "none",
        "seq_par_ag_redo": False,
        "data_par_overlap": run.software.overlaps_data and run.data > 1,
        "weight_offload": False,
        "activations_offload": False,
        "optimizer_offload": False,
        "training": True,
    }
