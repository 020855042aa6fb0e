"""`xgv plan --rows FILE.csv --json OUT`: step seconds and memory of every row of a file, none dropped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xgenvideo.plan.published import Published, read_file
from xgenvideo.plan.rates import Rates, load_rates, spread
from xgenvideo.plan.textmemory import GIBIBYTE, text_memory
from xgenvideo.plan.textrun import TextRun, text_step

CONVENTION = "model FLOPs with full square attention and the head, no recomputation, over the dense bf16 peak"
MEMORY = "GiB on the fullest GPU, as nvidia-smi shows it, with a margin of 9 %; memory_estimate_gb is without it"


def predict_file(path: Path, rates: Rates | None = None) -> list[dict[str, Any]]:
    """One object a row of the file, in its order. Raises DataError where the file cannot be read."""
    return predict(read_file(path), rates or load_rates())


def predict(rows: Sequence[Published], rates: Rates) -> list[dict[str, Any]]:
    """`run_id`, `iter_s`, `mem_gb_gpu`, `mfu_pct`, `low`, `high`, `defaults`; of a row without one `reason`."""
    return [_predicted(row, rates) for row in rows]


def _predicted(row: Published, rates: Rates) -> dict[str, Any]:
    if row.run is None:
        empty = dict.fromkeys(("iter_s", "mem_gb_gpu", "mfu_pct", "low", "high"))
        return {"run_id": row.name, **empty, "reason": row.reason, "defaults": list(row.defaults)}
    step, memory = text_step(row.run, rates), text_memory(row.run)
    low, high = spread("hopper" if row.run.cluster.gpu.hopper else "ampere")
    return {
        "run_id": row.name,
        "iter_s": step.total,
        "mem_gb_gpu": memory.total / GIBIBYTE,
        "memory_estimate_gb": memory.estimate / GIBIBYTE,
        "mfu_pct": 100 * mfu(row.run, step.total),
        "low": step.total * low,
        "high": step.total * high,
        "defaults": list(row.defaults),
    }


def mfu(run: TextRun, seconds: float) -> float:
    """Model FLOPs utilisation by CONVENTION."""
    return run.model_flops() / (seconds * run.gpus * run.cluster.gpu.bf16_flops_per_second)
