"""The run's log: metrics.jsonl, one line a step and none twice; TensorBoard; a progress bar on a terminal."""

import json
import os
import resource
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from xgenvideo.config import RunConfig
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.plan.flops import training_flops
from xgenvideo.train.metrics import Metrics

if TYPE_CHECKING:
    from rich.progress import Progress
    from torch.utils.tensorboard import SummaryWriter

PEAK_SIZE, PEAK_REPEATS = 1024, 12


class Log:
    """Writes every step's figures. Opened at step `step`, it first drops lines of later steps: they will come again."""

    def __init__(self, out: Path, config: RunConfig, step: int, quiet: bool) -> None:
        self.out, self.config, self.quiet = out, config, quiet
        self.peak_flops = measured_peak(config)
        self._lines = _truncate(out / "metrics.jsonl", step)
        self._file = open(out / "metrics.jsonl", "a", encoding="utf-8")
        self._writer: SummaryWriter | None = None
        self._progress: Progress | None = None
        self._step, self._last = step, time.perf_counter()
        self._mfus: list[float] = []

    def __enter__(self) -> "Log":
        if not self.quiet:
            self._progress = _progress(self._step, self.config.train.steps)
        self._last = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()
        if self._writer:
            self._writer.close()
        self.flush()
        self._file.close()

    def write(self, metrics: Metrics, model: VideoLM) -> None:
        """Log one step: its figures always, gates and memory every `train.log_every_steps` steps."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        line = metrics.to_dict() | self._rates(metrics, seconds)
        detailed = (metrics.step + 1) % self.config.train.log_every_steps == 0 or metrics.step == 0
        if detailed:
            line |= {
                "gates": model.gates(),
                "logit_scale": float(model.logit_scale.detach()),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
            }
        self._lines.append(line)
        self._file.write(json.dumps(line) + "\n")
        if detailed:
            self._tensorboard(line)
        if self._progress:
            told = f"loss {metrics.loss_next_token:.3f} + {metrics.loss_contrastive:.3f}, MFU {100 * line['mfu']:.0f} %"
            self._progress.update(self._progress.task_ids[0], completed=metrics.step + 1, description=told)

    def flush(self) -> None:
        """Make all lines durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def losses(self) -> list[float]:
        """Next-token loss of every step of the run so far."""
        return [line["loss_next_token"] for line in self._lines if not line["skipped"]]

    def mean_mfu(self) -> float:
        """Median MFU of this call's steps, 0 without any."""
        ordered = sorted(self._mfus)
        return ordered[len(ordered) // 2] if ordered else 0.0

    def _rates(self, metrics: Metrics, seconds: float) -> dict[str, float]:
        """Seconds, rates, and MFU: encoder once (not at all when cached), trainable three times, causal-halved."""
        pairs = metrics.pairs
        encoded = 0 if self.config.data.cache_features else metrics.frames
        flops = training_flops(self.config, pairs, metrics.tokens // pairs, metrics.frames // pairs, encoded)
        mfu = flops.total / seconds / self.peak_flops
        self._mfus.append(mfu)
        return {
            "seconds": seconds,
            "tokens_per_second": metrics.tokens / seconds,
            "pairs_per_second": pairs / seconds,
            "mfu": mfu,
            "mfu_quadratic": flops.total_quadratic / seconds / self.peak_flops,
        }

    def _tensorboard(self, line: dict[str, Any]) -> None:
        """Numbers of a line as TensorBoard scalars."""
        if self._writer is None:
            # Imported at its first use: it takes a second.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self._step)
        for name, value in line.items():
            for key, number in value.items() if isinstance(value, dict) else ((name, value),):
                if name != "step":
                    self._writer.add_scalar(f"{name}/{key}" if key != name else name, float(number), line["step"])


def measured_peak(config: RunConfig) -> float:
    """FLOP/s of a square matrix product in the run's precision on this machine: the peak that MFU is a fraction of."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    size = PEAK_SIZE * (8 if device == "cuda" else 1)
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(PEAK_REPEATS):
        started = time.perf_counter()
        product = left @ right
        float(product[0, 0])
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _truncate(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the whole lines of steps before `step`, in place by renaming; returns them."""
    if not path.exists():
        return []
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["step"] >= step:
            break
        kept.append(line)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(temporary, path)
    return kept


def _progress(step: int, steps: int) -> "Progress | None":
    """A progress bar with the time left; None where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    columns = (MofNCompleteColumn(), BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    progress = Progress(*columns, console=console)
    progress.add_task("starting", total=steps, completed=step)
    progress.start()
    return progress
