"""The training loop: build in visible lines, go on from the newest verified checkpoint, one explicit line a duty."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from xgenvideo.checkpoint import Checkpoint, Lease, prune, save_checkpoint
from xgenvideo.config import RunConfig, check
from xgenvideo.data.dataset import Dataset, open_dataset
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.loader import Loader
from xgenvideo.data.tokenizer import Tokenizer, load as load_tokenizer
from xgenvideo.errors import ConfigError, NotReady, TrainError
from xgenvideo.models.video_lm import VideoLM, build_model, trainable_state
from xgenvideo.models.vision import encoder_hash
from xgenvideo.parallel.world import World
from xgenvideo.train.log import Log
from xgenvideo.train.optimizer import TrainOptimizer
from xgenvideo.train.resume import claim, restore
from xgenvideo.train.signals import StopRequest
from xgenvideo.train.step import train_step

SKIPS_IN_A_ROW = 10


@dataclass(frozen=True)
class TrainSummary:
    """How a call of `train` ended. `exit_code` is 0 when it finished or was told where to stop, 128 + signal otherwise."""

    out: Path
    step: int
    steps: int
    loss_first: float
    loss_last: float
    seconds: float
    mfu: float
    exit_code: int

    def __str__(self) -> str:
        return (
            f"{self.out}: step {self.step} of {self.steps}, next-token loss {self.loss_first:.3f} to "
            f"{self.loss_last:.3f} (means of the first and last tenth), {self.seconds:.0f} s in this call, "
            f"MFU {100 * self.mfu:.1f} % (encoder once, trainable three times, causal-halved, no recompute; "
            "peak as measured by a matrix product at the start)"
        )


@dataclass
class Run:
    """Everything that a step touches, and `step`, the number of steps taken."""

    config: RunConfig
    model: VideoLM
    loader: Loader
    optimizer: TrainOptimizer
    world: World
    step: int = 0

    def checkpoint(self) -> Checkpoint:
        """All of the run's state, as it is now; the frozen encoder by its hash only."""
        return Checkpoint(
            self.step,
            {
                "model": trainable_state(self.model),
                "optimizer": self.optimizer.state(),
                "random": {"cpu": torch.get_rng_state()},
            },
            {
                "loader": self.loader.state(),
                "encoder": encoder_hash(self.model.vision),
                "config": asdict(self.config),
                "torch": torch.__version__,
            },
        )


def train(config: RunConfig, out: Path, quiet: bool = False) -> TrainSummary:
    """Train to `train.steps`, or to `train.stop_after_steps` if that is set; goes on where an earlier call stopped.

    Same config, same data, same weights: bitwise, however often the run was killed. Raises ConfigError, DataError,
    CheckpointError, and TrainError for a directory in use or a loss that stays non-finite.
    """
    check(config)
    refuse_parallel(config)
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    dataset = open_dataset(dataset_folder(config))
    tokenizer = load_tokenizer(dataset.folder / "tokenizer.json")
    out.mkdir(parents=True, exist_ok=True)
    with Lease(out), StopRequest() as stop:
        claim(out, config, tokenizer)
        run = build(config, dataset, tokenizer)
        restore(run, out / "checkpoints")
        with Log(out, config, run.step, quiet) as log:
            return loop(run, out, log, stop)


def dataset_folder(config: RunConfig) -> Path:
    """The folder of `data.shards`. Raises ConfigError where none is named."""
    if not config.data.shards:
        raise ConfigError(
            "data.shards", "", "must name a dataset folder; make one with: xgv curate SOURCE --out DATASET"
        )
    return Path(config.data.shards)


def refuse_parallel(config: RunConfig) -> None:
    """Raise NotReady for a layout of more than one rank, which this version only plans."""
    layout = config.layout
    if layout.world > 1 or layout.virtual_stages > 1:
        raise NotReady(
            f"layout.tensor x layout.pipeline x layout.data = {layout.tensor} x {layout.pipeline} x {layout.data}: "
            "this version trains on one process; set layout.tensor=1 layout.pipeline=1 layout.data=1"
        )


def build(config: RunConfig, dataset: Dataset, tokenizer: Tokenizer) -> Run:
    """Model, then data, then optimizer, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config, device).train()
    cache = feature_cache(config, dataset, model, device) if config.data.cache_features else None
    loader = Loader(dataset, tokenizer, config, cache=cache)
    optimizer = TrainOptimizer(model, config)
    return Run(config, model, loader, optimizer, World())


def feature_cache(config: RunConfig, dataset: Dataset, model: VideoLM, device: torch.device) -> FeatureCache:
    """The frozen features of the dataset, beside it; made on the first call."""
    cache = FeatureCache(
        dataset.folder.with_name(dataset.folder.name + ".features"),
        encoder_hash(model.vision),
        config.model.vision.image_size,
    )
    return cache.build(dataset, lambda frames: model.encode_frames(frames.to(device)))


def loop(run: Run, out: Path, log: Log, stop: StopRequest) -> TrainSummary:
    """Step until the end, a requested stop, or an error; save on the way and at the end."""
    settings = run.config.train
    last = min(settings.steps, settings.stop_after_steps or settings.steps)
    device = run.model.logit_scale.device
    started, skips, saved = time.perf_counter(), 0, run.step
    while run.step < last and not stop.signal:
        batch = run.loader.next_batch().to(device)
        metrics = train_step(run.model, run.optimizer, batch, run.step, run.config, run.world)
        run.step += 1
        log.write(metrics, run.model)
        skips = skips + 1 if metrics.skipped else 0
        if skips >= SKIPS_IN_A_ROW:
            raise TrainError(
                f"step {run.step}: the gradient was not finite in {skips} steps in a row; the last checkpoint is of "
                f"step {saved}. Lower optimizer.lr, or look at the data of these steps in metrics.jsonl"
            )
        if run.step % settings.save_every_steps == 0:
            saved = save(run, out, log)
    if run.step > saved:
        save(run, out, log)
    run.loader.close()
    return summary(run, out, log, time.perf_counter() - started, stop)


def save(run: Run, out: Path, log: Log) -> int:
    """Make the log durable, then commit a checkpoint, then drop old ones; returns the step saved."""
    log.flush()
    save_checkpoint(out / "checkpoints", run.checkpoint())
    prune(out / "checkpoints", run.config.train.keep_checkpoints)
    return run.step


def summary(run: Run, out: Path, log: Log, seconds: float, stop: StopRequest) -> TrainSummary:
    """How this call ended, from the run's own log."""
    losses = log.losses()
    tenth = max(1, len(losses) // 10)
    first, final = losses[:tenth], losses[-tenth:]
    finished = run.step >= run.config.train.steps
    values: dict[str, Any] = {
        "loss_first": sum(first) / len(first) if first else float("nan"),
        "loss_last": sum(final) / len(final) if final else float("nan"),
    }
    exit_code = 128 + stop.signal if stop.signal and not finished else 0
    return TrainSummary(
        out, run.step, run.config.train.steps, seconds=seconds, mfu=log.mean_mfu(), exit_code=exit_code, **values
    )
