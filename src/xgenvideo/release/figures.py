"""What a run's own records say of it, as JSON values: the only source of the figures in a model card."""

import json
import os
import platform
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from xgenvideo import __version__
from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import Dataset
from xgenvideo.errors import ConfigError
from xgenvideo.models.video_lm import VideoLM

METRICS = "metrics.jsonl"
MACHINE = "machine.json"
RATES = ("seconds_per_step", "pairs_per_second", "tokens_per_second", "mfu")
# A source is often a series with a number behind: generated-17.
SERIAL = re.compile(r"[-_/#:]?\d+$")
SOURCES_NAMED = 20
COUNTRY, CO2 = "XGENVIDEO_COUNTRY", "XGENVIDEO_CO2_G_PER_KWH"
Figures = dict[str, Any]


def run_figures(
    run: Path, step: int, config: RunConfig, model: VideoLM, dataset: Dataset | None, evaluation: Figures | None
) -> Figures:
    """Everything a model card states, from the run folder, the dataset and the evaluation."""
    return {
        "name": config.name,
        "step": step,
        "steps_planned": config.train.steps,
        "pairs_seen": step * config.train.global_batch_pairs,
        "parameters": count_parameters(model),
        "training": training_figures(run, step),
        "data": data_figures(dataset) if dataset is not None else None,
        "evaluation": _without_places(evaluation),
        "energy": energy_figures(run, step),
        "place": place(),
        "hardware": hardware(),
        "versions": {"xgenvideo": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def count_parameters(model: VideoLM) -> dict[str, int]:
    """Counted, not computed: parameters by part, then `total` and `trainable`."""
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parts[_part(name)] += parameter.numel()
    total = sum(parts.values())
    return dict(parts) | {"total": total, "trainable": total - parts["vision encoder (frozen)"]}


def _part(name: str) -> str:
    first, *rest = name.split(".")
    if first == "vision":
        return "vision encoder (frozen)"
    if first == "resampler":
        return "resampler"
    if first == "decoder" and rest[0] in ("embedding", "head"):
        return "token embedding and head"
    if first == "decoder" and rest[0] == "cross":
        return "decoder cross-attention blocks"
    return "decoder self-attention blocks" if first == "decoder" and rest[0] == "layers" else "norms and projections"


def training_figures(run: Path, steps: int) -> Figures | None:
    """Losses and rates of the first `steps` steps out of the run's log; None without a log.

    A loss is given at the first and the last line of the log that has one; a rate as the median over lines, the first
    left out because it also pays for warming up. `peak` is what the log's MFU is a fraction of.
    """
    rows = [row for row in _rows(run / METRICS) if row.get("step", steps + 1) <= steps]
    if not rows:
        return None
    losses = {name: _ends(rows, name) for name in sorted(rows[-1]) if name.startswith("loss")}
    rates = {name: _median(rows[1:] or rows, name) for name in RATES if name in rows[-1]}
    return {"lines": len(rows), "losses": losses, "median": rates, "peak": _peak(run / MACHINE)}


def _without_places(evaluation: Figures | None) -> Figures | None:
    """The evaluation without its command and config, which name folders of this disk; run.json has the config."""
    if not evaluation or "of" not in evaluation:
        return evaluation
    of = {name: value for name, value in evaluation["of"].items() if name not in ("command", "config")}
    return evaluation | {"of": of}


def energy_figures(run: Path, steps: int) -> Figures | None:
    """Joules that the log's lines of the first `steps` steps add up to, by counter; None where no line has any.

    `lines` of `of` lines had the counter: what the others used is not in the sum.
    """
    rows = [row for row in _rows(run / METRICS) if row.get("step", steps + 1) <= steps]
    found: Figures = {}
    for name in ("gpu_joules", "cpu_joules"):
        known = [row[name] for row in rows if row.get(name) is not None]
        if known:
            found[name] = {"joules": sum(known), "lines": len(known), "of": len(rows)}
    return found or None


def place() -> Figures:
    """Where the run's electricity was used and what it emits, as its operator says; None where nobody said."""
    intensity = os.environ.get(CO2)
    try:
        grams = None if intensity is None else float(intensity)
    except ValueError as error:
        raise ConfigError(CO2, intensity, "must be grams of CO2 for a kWh of the grid, a number") from error
    return {"country": os.environ.get(COUNTRY) or None, "co2_grams_per_kwh": grams}


def _ends(rows: list[Figures], name: str) -> Figures | None:
    """First and last value of a figure with their steps; a line whose loss was not finite holds null."""
    found = [row for row in rows if row.get(name) is not None]
    if not found:
        return None
    first, last = found[0], found[-1]
    return {"first": first[name], "first_step": first["step"], "last": last[name], "last_step": last["step"]}


def _median(rows: list[Figures], name: str) -> float | None:
    found = [row[name] for row in rows if row.get(name) is not None]
    return float(statistics.median(found)) if found else None


def _peak(path: Path) -> str | None:
    """Where the peak of the run's MFU is from, as training noted it."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return f"{values['flops_per_second'] / 1e12:.3g} TFLOP/s, {values['source']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _rows(path: Path) -> list[Figures]:
    """The rows of a JSONL file; a line that a crash cut short is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def data_figures(dataset: Dataset) -> Figures:
    """Counts, hours, sources and licences out of the manifest, and the card that curation wrote."""
    splits: Figures = {}
    licences: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for split in sorted(dataset.counts):
        rows = list(dataset.rows(split))
        splits[split] = {"clips": len(rows), "hours": sum(row.seconds for row in rows) / 3600}
        licences.update(row.licence for row in rows)
        sources.update(SERIAL.sub("", row.source) for row in rows)
    return {
        "fingerprint": dataset.fingerprint,
        "splits": splits,
        "licences": dict(licences.most_common()),
        "sources": dict(sources.most_common(SOURCES_NAMED)),
        "sources_not_named": max(0, len(sources) - SOURCES_NAMED),
        "card": dataset.card,
    }


def hardware() -> Figures:
    """The machine this runs on, as it says of itself."""
    found: Figures = {"machine": platform.machine(), "cpu": _cpu_name(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
