"""The log of a run: metrics.jsonl, TensorBoard, W&B where asked for, and a progress bar on a terminal."""

import json
import os
import sys
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from xgenvideo.checkpoint.save import replace_synced, sync_folder
from xgenvideo.errors import ConfigError, MissingExtra

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
WANDB = "wandb_run.txt"


class Log:
    """Writes what the loop tells it. `start`: the steps that are done already; later lines of an older try are cut.

    `wandb_project`: where W&B keeps the run too; "" for not at all. Raises MissingExtra, ConfigError.
    """

    def __init__(self, out: Path, start: int, steps: int, quiet: bool, wandb_project: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        self._out, self._quiet, self._steps = out, quiet, steps
        self._wandb: Any = start_wandb(out, wandb_project) if wandb_project else None
        keep_until(out / METRICS, start)
        self._file: TextIO = (out / METRICS).open("a", encoding="utf-8")
        sync_folder(out)
        self._board: Any = SummaryWriter(str(out / TENSORBOARD), purge_step=start + 1)
        self._progress = progress_bar(quiet)
        self._task = self._progress.add_task("training", total=steps, completed=start, loss="")
        self._progress.start()

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(error is not None))

    def advance(self, step: int, loss: float) -> None:
        """Move the bar; called at every step."""
        self._progress.update(self._task, completed=step, loss=f"loss {loss:.3f}")

    def write(self, row: dict[str, Any]) -> None:
        """Add a line of metrics, which has a `step`."""
        self._file.write(json.dumps(row, allow_nan=False) + "\n")
        self._file.flush()
        scalars = {name: value for name, value in {**row, **gates_of(row)}.items() if isinstance(value, int | float)}
        for name, value in scalars.items():
            if name != "step":
                self._board.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(scalars)
        if self._progress.disable:
            shown = (
                "loss",
                "loss_next_token",
                "loss_contrastive",
                "grad_norm",
                "lr",
                "pairs_per_second",
                "mfu",
                "heldout_loss",
            )
            figures = ", ".join(f"{name} {row[name]:.4g}" for name in shown if row.get(name) is not None)
            self.say(f"step {row['step']}/{self._steps}: {figures}")

    def back_to(self, step: int) -> None:
        """Cut what was logged after `step`, which will be done again."""
        self._file.close()
        keep_until(self._out / METRICS, step)
        self._file = (self._out / METRICS).open("a", encoding="utf-8")
        self._progress.update(self._task, completed=step)

    def say(self, text: str) -> None:
        """Tell the person at the terminal something; nothing when quiet."""
        say(text, self._quiet)

    def sync(self) -> None:
        """Wait until the metrics are on disk: they may be ahead of a checkpoint, never behind it."""
        os.fsync(self._file.fileno())


class Silent:
    """The log of every rank but the first: it writes nothing."""

    def __enter__(self) -> "Silent":
        return self

    def __exit__(self, *error: object) -> None:
        return

    def advance(self, step: int, loss: float) -> None:
        """Nothing."""

    def write(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def back_to(self, step: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""


def gates_of(row: dict[str, Any]) -> dict[str, float]:
    """The gates of a line, each under a name of its own."""
    return {f"gates/{name}": value for name, value in row.get("gates", {}).items()}


def start_wandb(out: Path, project: str) -> Any:
    """The W&B run of the folder `out`, the same one after a resume; WANDB_MODE=offline keeps it on this machine.

    Raises MissingExtra where the package is not installed, ConfigError where W&B does not start (no key, no network).
    """
    try:
        import wandb  # only here: nobody who did not ask for it pays for it
    except ModuleNotFoundError as error:
        raise MissingExtra("wandb", "wandb") from error
    remembered, settings = out / WANDB, out / "config.json"
    if not remembered.exists():
        replace_synced(remembered, uuid.uuid4().hex.encode())
    config = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
    try:
        run = wandb.init(
            project=project,
            name=out.resolve().name,
            id=remembered.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(out),
            config=config,
        )
    except wandb.Error as error:
        rule = f"W&B does not start ({error}); run `wandb login`, set WANDB_MODE=offline, or leave it empty"
        raise ConfigError("train.wandb_project", project, rule) from error
    # Steps that are done again after a way back are drawn over, by our own step.
    run.define_metric("*", step_metric="step")
    return run


def keep_until(path: Path, step: int) -> None:
    """Cut what an older try logged after `step`, which is done again now, and a line that its death left unfinished."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        replace_synced(path, "".join(kept).encode())


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Every line of a run's metrics.jsonl; none where there is no such file."""
    path = out / METRICS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def progress_bar(quiet: bool) -> Progress:
    """A bar with the time left, shown on a terminal only."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not console.is_terminal,
    )


def say(text: str, quiet: bool) -> None:
    """A line on stderr, unless quiet; stdout is for answers."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)
