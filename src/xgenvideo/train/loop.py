"""The training loop: build in visible lines, go on from the newest verified checkpoint, step, log, save.

Run: xgv train RECIPE data.shards=DATASET --out RUN, and the same line again to go on after any death.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xgenvideo import config as configs
from xgenvideo.checkpoint import Lease, save, sweep, take_lease
from xgenvideo.checkpoint.run import CHECKPOINTS, TOKENIZER
from xgenvideo.checkpoint.save import replace_synced
from xgenvideo.config import RunConfig
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.dataset import Dataset, open_dataset
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.loader import Loader
from xgenvideo.errors import ConfigError, NotReady, TrainError
from xgenvideo.models.video_lm import VideoLM, build_model
from xgenvideo.models.vision import encoder_hash
from xgenvideo.parallel.layout import check_layout, refuse_unready
from xgenvideo.parallel.world import World, single_process
from xgenvideo.train.log import Log, read_metrics, say
from xgenvideo.train.metrics import Meter, Metrics, Peak, machine_peak, peak_rss_mb, row_of
from xgenvideo.train.optimizer import build_optimizer, trained_parameters
from xgenvideo.train.resume import Training, file_sha256, find_checkpoint, restore, snapshot_of
from xgenvideo.train.step import training_step
from xgenvideo.train.stop import StopSignals

MOST_SKIPPED_IN_A_ROW = 10
FEATURES = ".features"
MACHINE = "machine.json"


@dataclass(frozen=True)
class TrainSummary:
    """How a run stands. Losses and the mean `mfu` (see train/metrics.py) are from its log; `seconds` is this call's."""

    out: Path
    checkpoint: Path
    step: int
    steps: int
    loss_first: float | None
    loss_last: float | None
    mfu: float | None
    peak_flops_per_second: float
    peak_source: str
    parameters: int
    trained_parameters: int
    pairs_seen: int
    skipped_steps: int
    seconds: float
    peak_rss_mb: float

    @property
    def finished(self) -> bool:
        """Whether every step of the recipe is done."""
        return self.step >= self.steps

    def __str__(self) -> str:
        losses = f"loss {self.loss_first:.3f} -> {self.loss_last:.3f}" if self.loss_first and self.loss_last else ""
        mfu = f"MFU {self.mfu:.1%} of {self.peak_flops_per_second / 1e12:.3g} TFLOP/s" if self.mfu else ""
        told = (
            f"{self.out}: step {self.step} of {self.steps}, {losses}, {self.seconds:.0f} s, {mfu} ({self.peak_source})"
        )
        return f"{told}\ncheckpoint: {self.checkpoint}"


def train(config: RunConfig, out: Path, quiet: bool = False) -> TrainSummary:
    """Train in the run folder `out` to `train.steps` (or `train.stop_after_steps`) steps, from wherever it stands.

    After SIGINT or SIGTERM the step ends, is saved, and SystemExit is raised with 130 or 143. Raises ConfigError,
    NotReady (a layout of many ranks), DataError, CheckpointError, TrainError (folder in use, no finite step).
    """
    began = time.perf_counter()
    configs.check(config)
    refuse_unready(config)
    if config.train.eval_every_steps:
        asked = f"train.eval_every_steps = {config.train.eval_every_steps}"
        raise NotReady(f"{asked}: this version does not evaluate while it trains. Set 0; `xgv evaluate` reads the run.")
    with take_lease(out) as lease, machine_settings(config), contextlib.ExitStack() as stack:
        world = single_process()
        check_layout(config, world.size)
        training = build(config, world, quiet)
        stack.callback(training.loader.close)
        begin(training, out, quiet)
        peak = machine_peak(world.device, config.train.precision, out / MACHINE)
        say(
            f"peak: {peak.flops_per_second / 1e12:.3g} TFLOP/s ({peak.source}); MFU counts causal attention half", quiet
        )
        checkpoint = run(training, out, world, peak, lease, quiet)
    return summarise(training, out, checkpoint, peak, time.perf_counter() - began)


def build(config: RunConfig, world: World, quiet: bool) -> Training:
    """Model, data, optimizer, in this order."""
    model = build_model(config, world.device).train()
    sizes = (sum(p.numel() for p in model.parameters()), sum(p.numel() for p in trained_parameters(model).values()))
    say(f"model: {config.name}, {sizes[0]:,} parameters, {sizes[1]:,} of them trained, on {world.device}", quiet)

    if not config.data.shards:
        raise ConfigError("data.shards", "", "must be the folder of a dataset; `xgv curate` makes one")
    dataset = open_dataset(Path(config.data.shards))
    tokenizer_path = dataset.folder / TOKENIZER
    tokenizer = tokenizers.load(tokenizer_path)
    cache = build_features(config, dataset, model, world, quiet) if config.data.cache_features else None
    loader = Loader(dataset, tokenizer, config, world.rank, world.size, cache)
    say(f"data: {dataset}", quiet)

    optimizer = build_optimizer(model, config.optimizer)
    say(f"optimizer: AdamW, lr {config.optimizer.lr:g}, {config.train.global_batch_pairs} pairs a step", quiet)
    return Training(config, model, loader, optimizer, encoder_hash(model.vision), file_sha256(tokenizer_path))


def build_features(config: RunConfig, dataset: Dataset, model: VideoLM, world: World, quiet: bool) -> FeatureCache:
    """The frozen encoder's features of the whole dataset, made once for all runs and kept beside it."""
    folder = dataset.folder.with_name(dataset.folder.name + FEATURES)
    cache = FeatureCache(folder, encoder_hash(model.vision), config.model.vision.image_size)
    say(f"features: {cache.path(dataset.fingerprint)}", quiet)
    return cache.build(dataset, lambda frames: model.encode_frames(frames.to(world.device)))


def begin(training: Training, out: Path, quiet: bool) -> None:
    """Restore the newest verified checkpoint, if there is one, and write down what this run is."""
    sweep(out / CHECKPOINTS)
    torch.manual_seed(training.config.train.seed)
    path, lines = find_checkpoint(out)
    if path is not None:
        lines += [f"resume: {path}", *restore(training, path)]
    for line in lines:
        say(line, quiet)
    replace_synced(out / "config.json", training.config.to_json().encode())
    replace_synced(out / TOKENIZER, (training.loader.dataset.folder / TOKENIZER).read_bytes())


def run(training: Training, out: Path, world: World, peak: Peak, lease: Lease, quiet: bool) -> Path:
    """Step, log and save until the end or a signal; returns the newest checkpoint."""
    config, meter, newest = training.config, Meter(training.config, peak), training.started_from
    with StopSignals() as stop, Log(out, training.step, config.train.steps, quiet) as log:
        while training.step < last_step(config):
            began = time.perf_counter()
            metrics = training_step(config, training.model, training.loader, training.optimizer, world, training.step)
            meter.add(metrics, time.perf_counter() - began)
            note(training, metrics, log)
            if log_due(config, metrics):
                log.write(row_of(metrics, training.model, meter.take(), training.skipped_steps))
            if stop.caught or training.step % config.train.save_every_steps == 0 or training.step == last_step(config):
                log.sync()
                newest = save(out / CHECKPOINTS, snapshot_of(training), config.train.keep_checkpoints, lease)
            if stop.caught:
                log.say(f"{stop.caught.name}: saved {newest}; the same command goes on from there")
                raise SystemExit(stop.exit_code)
    assert newest is not None, "a run of at least one step has saved"
    return newest


def last_step(config: RunConfig) -> int:
    """The step after which this call ends."""
    return min(config.train.steps, config.train.stop_after_steps or config.train.steps)


def log_due(config: RunConfig, metrics: Metrics) -> bool:
    """Whether a step is logged: the first, every log_every_steps-th, the last, and every one that was not finite."""
    cadence = metrics.step % config.train.log_every_steps == 0
    return cadence or metrics.step in (1, config.train.steps) or not metrics.finite


def note(training: Training, metrics: Metrics, log: Log) -> None:
    """Count the step. Raises TrainError after MOST_SKIPPED_IN_A_ROW steps that were not finite."""
    training.step = metrics.step
    log.advance(metrics.step, metrics.loss)
    if metrics.finite:
        training.skipped_in_a_row = 0
        return
    training.skipped_steps += 1
    training.skipped_in_a_row += 1
    what = f"loss {metrics.loss}, gradient norm {metrics.grad_norm}"
    log.say(f"step {metrics.step}: not finite ({what}); the weights stay as they were")
    if training.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
        cure = "lower optimizer.lr, or train.precision=fp32, and run again from the last checkpoint"
        raise TrainError(f"{training.skipped_in_a_row} steps in a row were not finite ({what}); {cure}")


@contextlib.contextmanager
def machine_settings(config: RunConfig) -> Iterator[None]:
    """Deterministic kernels, the configured threads and own random states for a run; all put back afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # Filling fresh memory finds bugs, and costs time at every allocation.
    memory.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        memory.fill_uninitialized_memory = filled


def summarise(training: Training, out: Path, checkpoint: Path, peak: Peak, seconds: float) -> TrainSummary:
    """The summary, from the run's own metrics, so that a run in many pieces is told as one."""
    rows = read_metrics(out)
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    rates = [row["mfu"] for row in rows]
    return TrainSummary(
        out=out,
        checkpoint=checkpoint,
        step=training.step,
        steps=training.config.train.steps,
        loss_first=losses[0] if losses else None,
        loss_last=losses[-1] if losses else None,
        mfu=sum(rates) / len(rates) if rates else None,
        peak_flops_per_second=peak.flops_per_second,
        peak_source=peak.source,
        parameters=sum(parameter.numel() for parameter in training.model.parameters()),
        trained_parameters=sum(parameter.numel() for parameter in trained_parameters(training.model).values()),
        pairs_seen=training.step * training.config.train.global_batch_pairs,
        skipped_steps=training.skipped_steps,
        seconds=seconds,
        peak_rss_mb=peak_rss_mb(),
    )
