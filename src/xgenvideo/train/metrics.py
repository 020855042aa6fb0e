"""What a step tells: losses and counts from the step itself, speed, utilisation, waiting and memory from the machine.

MFU is model FLOPs (plan/flops.py: encoder once, trainable parts three times, causal attention counted as half the
square, nothing recomputed) over what the machine could have done in that time; `mfu_full_square` counts the whole
square, as most published figures do; `hfu` (train/hardware.py) adds what is computed again. The peak is that of a known
GPU's data sheet in bf16, otherwise measured once a run folder with a large matrix product, and named in summaries.
"""

import json
import math
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xgenvideo.checkpoint.save import replace_synced
from xgenvideo.config import RunConfig
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.parallel.stage import Texts
from xgenvideo.parallel.world import World
from xgenvideo.plan.flops import training_flops
from xgenvideo.plan.hardware import GPUS
from xgenvideo.train.hardware import extra_flops
from xgenvideo.train.passes import Counts

MEASURED_SIZE = {"cpu": 1024, "cuda": 8192}
MEASURED_SECONDS = 0.4


@dataclass(frozen=True)
class Metrics:
    """One step. `step` counts from 1; `tokens` are text tokens without padding; `frames`: padded F, a mean.

    `finite` False: the loss or the gradient was not, and the weights were left as they were.
    """

    step: int
    finite: bool
    loss: float
    loss_next_token: float
    loss_contrastive: float
    grad_norm: float
    lr: float
    pairs: int
    tokens: int
    text_tokens: int
    frames: float
    encoded_frames: int

    @staticmethod
    def of(
        step: int,
        counts: Counts,
        texts: Texts,
        finite: bool,
        lr: float,
        loss: Tensor,
        next_token: Tensor,
        contrastive: Tensor,
        norm: Tensor,
    ) -> "Metrics":
        """Read the figures of a step from the device."""
        return Metrics(
            step=step,
            finite=finite,
            loss=float(loss),
            loss_next_token=float(next_token),
            loss_contrastive=float(contrastive),
            grad_norm=float(norm),
            lr=lr,
            pairs=counts.pairs,
            tokens=int(counts.tokens),
            text_tokens=texts.tokens.shape[1],
            frames=int(counts.padded_frames) / counts.pairs,
            encoded_frames=int(counts.encoded),
        )


@dataclass(frozen=True)
class Peak:
    """FLOP/s that the machine's matrix unit can do, and where the figure is from."""

    flops_per_second: float
    source: str


class Meter:
    """Sums work and time between two log lines. Time is that of steps alone, waiting for data included."""

    def __init__(self, config: RunConfig, peak: Peak, ranks: int = 1) -> None:
        self.config, self.peak, self.ranks = config, peak, ranks
        self._reset()

    def _reset(self) -> None:
        self._seconds = self._flops = self._full_square = self._hardware = 0.0
        self._steps = self._pairs = self._tokens = 0

    def add(self, metrics: Metrics, seconds: float) -> None:
        """Count a step that took `seconds`."""
        flops = training_flops(self.config, metrics.pairs, metrics.text_tokens, metrics.frames, metrics.encoded_frames)
        self._seconds += seconds
        self._flops += flops.total
        self._full_square += flops.total_quadratic
        self._hardware += flops.total_quadratic + extra_flops(self.config, metrics.text_tokens, metrics.frames)
        self._steps += 1
        self._pairs += metrics.pairs
        self._tokens += metrics.tokens

    def take(self, world: World | None = None) -> dict[str, float]:
        """Rates since the last call, by name. With a `world`, all of whose ranks call: waiting and memory of them all.

        `bubble`: share of the steps' time in which a rank waits in the pipeline's schedule, the mean over ranks.
        """
        seconds = max(self._seconds, 1e-9)
        possible = seconds * self.peak.flops_per_second * self.ranks
        rates = {
            "seconds_per_step": self._seconds / max(1, self._steps),
            "pairs_per_second": self._pairs / seconds,
            "tokens_per_second": self._tokens / seconds,
            "mfu": self._flops / possible,
            "mfu_full_square": self._full_square / possible,
            "hfu": self._hardware / possible,
        }
        self._reset()
        if world is not None:
            rates |= peak_memory_mb(world)
            if world.layout.pipeline > 1:
                waited = torch.tensor(world.waiting.take(), dtype=torch.float64, device=world.device)
                rates["bubble"] = float(world.sum(waited)) / world.size / seconds
        return rates


def row_of(
    metrics: Metrics, model: VideoLM, gates: dict[str, float], rates: dict[str, float], skipped_steps: int
) -> dict[str, Any]:
    """A line of metrics.jsonl. What JSON cannot say (not a number, infinite) is null. `gates`: their tanh by name."""
    values = asdict(metrics)
    names = ("step", "loss", "loss_next_token", "loss_contrastive", "grad_norm", "lr")
    row = {name: values[name] for name in names} | {
        "logit_scale": float(model.logit_scale.detach()),
        "gates": gates,
    }
    row |= {"skipped_steps": skipped_steps, "peak_rss_mb": peak_rss_mb(), **rates}
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def peak_rss_mb() -> float:
    """Most memory that this process has had, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def peak_memory_mb(world: World) -> dict[str, float]:
    """Most memory that any rank has had so far, in MB (10^6 bytes): its process, and its GPU where it has one."""
    on_gpu = world.device.type == "cuda"
    peaks = [peak_rss_mb()] + [torch.cuda.max_memory_allocated(world.device) / 1e6] * on_gpu
    found = world.largest(torch.tensor(peaks, dtype=torch.float64, device=world.device)).tolist()
    return dict(zip(("peak_rss_mb", "peak_gpu_mb"), found, strict=False))


def machine_peak(device: torch.device, precision: str, memo: Path) -> Peak:
    """The machine's peak, measured or from a data sheet. `memo`: a JSON file that remembers a measurement."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    known = next((gpu for gpu in GPUS if gpu.name.upper() in name.upper().split()), None)
    if known is not None and precision == "bf16":
        return Peak(known.bf16_flops_per_second, f"data sheet of the {known.title}, dense bf16")
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    machine = {"device": name, "precision": precision, "threads": threads}
    try:
        remembered = json.loads(memo.read_text(encoding="utf-8"))
        if remembered["machine"] == machine:
            return Peak(float(remembered["flops_per_second"]), str(remembered["source"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not measured yet, or not readable: measuring again is cheap
    flops = measure_matmul(device, torch.bfloat16 if precision == "bf16" else torch.float32)
    size = MEASURED_SIZE[device.type]
    peak = Peak(flops, f"measured: {precision} matrix product of size {size} on {name}")
    values = {"machine": machine, **asdict(peak)}
    replace_synced(memo, (json.dumps(values, indent=2) + "\n").encode())
    return peak


def measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """Best FLOP/s of a square matrix product, over MEASURED_SECONDS. The best: others may be using the machine."""
    size = MEASURED_SIZE[device.type]
    left, right = (torch.full((size, size), 0.5, device=device, dtype=dtype) for _ in range(2))
    best, started = 0.0, time.perf_counter()
    while best == 0 or time.perf_counter() - started < MEASURED_SECONDS:
        begun = time.perf_counter()
        # Reading one value waits for the device.
        float((left @ right)[0, 0])
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best
