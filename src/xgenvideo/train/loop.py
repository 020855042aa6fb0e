"""The training loop: build in visible lines, go on from the newest verified checkpoint, step, log, save.

Run: xgv train RECIPE data.shards=DATASET --out RUN, and the same line again to go on after any death.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xgenvideo import config as configs
from xgenvideo.checkpoint import Lease, Ranks, sweep, take_lease
from xgenvideo.checkpoint.run import CHECKPOINTS, TOKENIZER
from xgenvideo.checkpoint.save import replace_synced
from xgenvideo.config import RunConfig
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.dataset import Dataset, open_dataset
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.loader import Loader
from xgenvideo.data.published_tokenizer import adopt, tokenizer_file
from xgenvideo.errors import ConfigError, TrainError
from xgenvideo.parallel.engine import Engine, build_engine
from xgenvideo.parallel.health import check_weights, slowest
from xgenvideo.parallel.layout import check_layout
from xgenvideo.parallel.rounds import Rounds
from xgenvideo.parallel.watchdog import Watchdog
from xgenvideo.parallel.world import World, join_world, launched_size, leave_world
from xgenvideo.train.cadence import Cadence
from xgenvideo.train.energy import EnergyMeter
from xgenvideo.train.heldout import HeldOut
from xgenvideo.train.keeper import Keeper
from xgenvideo.train.log import Log, Silent, read_metrics, say
from xgenvideo.train.metrics import Meter, Metrics, Peak, machine_peak, peak_rss_mb, row_of
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.resume import Training, file_sha256, find_checkpoint, restore
from xgenvideo.train.spikes import Spikes
from xgenvideo.train.step import training_step
from xgenvideo.train.stop import STOPPED, StopSignals

MOST_SKIPPED_IN_A_ROW = 10
FEATURES = ".features"
MACHINE = "machine.json"
NO_RUN = ("dataset.json", "pairs.jsonl", "release.json")  # of datasets, raw clips and releases
# Read by cuBLAS when it starts: without it matrix products of an NVIDIA GPU need not be the same twice (torch's notes
# on reproducibility).
CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


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

    After a signal or the wall-clock limit the step ends, is saved, and SystemExit is raised (train/stop.py). Raises
    ConfigError, DataError, CheckpointError, TrainError (folder in use, no finite
    step, loss spikes).
    """
    began, started = time.perf_counter(), time.monotonic()
    configs.check(config)
    check_layout(config, launched_size())
    with machine_settings(config), contextlib.ExitStack() as stack:
        world = join_world(config.layout, config.train.startup_timeout_seconds, config.train.step_timeout_seconds)
        stack.callback(leave_world)
        check_out(out)
        lease = stack.enter_context(take_lease(out)) if world.rank == 0 else None
        quiet = quiet or world.rank != 0
        training = build(config, world, quiet)
        stack.callback(training.loader.close)
        begin(training, out, quiet)
        peak = machine_peak(world.device, config.train.precision, out / MACHINE)
        told = f"peak: {peak.flops_per_second / 1e12:.3g} TFLOP/s a rank ({peak.source})"
        say(f"{told}; MFU counts causal attention half", quiet)
        with writable(out):
            checkpoint = run(training, out, peak, lease, started, quiet)
        return summarise(training, out, checkpoint, peak, time.perf_counter() - began)


def build(config: RunConfig, world: World, quiet: bool) -> Training:
    """Data, engine, optimizer, in this order: what is missing is told before the weights are made."""
    if not config.data.shards:
        raise ConfigError("data.shards", "", "must be the folder of a dataset; `xgv curate` makes one")
    dataset = open_dataset(Path(config.data.shards))
    tokenizer, tokenizer_sha256 = read_tokenizer(config, dataset)
    say(f"data: {dataset}", quiet)

    engine = build_engine(config, world)
    total, trained = engine.parameters(world)
    say(f"model: {config.name}, {total:,} parameters, {trained:,} of them trained, on {layout_text(world)}", quiet)
    if len(engine.stages) > 1:
        say(f"cut (self/cross blocks a stage): {' '.join(stage.label for stage in engine.stages)}", quiet)

    cache = build_features(config, dataset, engine, world, quiet) if config.data.cache_features else None
    pinned = world.device.type == "cuda"
    loader = Loader(dataset, tokenizer, config, world.pair_rank, world.size, cache, pinned)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    say(f"optimizer: AdamW, lr {config.optimizer.lr:g}, {config.train.global_batch_pairs} pairs a step", quiet)
    return Training(config, engine, world, Ranks.of_process(), loader, optimizer, tokenizer_sha256)


def read_tokenizer(config: RunConfig, dataset: Dataset) -> tuple[tokenizers.Tokenizer, str]:
    """The tokenizer of the run, and the SHA-256 of the file that it is from."""
    if config.data.published_tokenizer:
        path = Path(config.data.published_tokenizer)
        return adopt(path), file_sha256(tokenizer_file(path))
    path = dataset.folder / TOKENIZER
    return tokenizers.load(path), file_sha256(path)


def layout_text(world: World) -> str:
    """The ranks and how they are used."""
    layout = world.layout
    if world.size == 1:
        return str(world.device)
    return f"{world.size} ranks: tensor {layout.tensor} x pipeline {layout.pipeline} x data {layout.data}"


def check_out(out: Path) -> None:
    """Refuse a folder that is something else than a run: the files of both would lie in one. Raises TrainError."""
    found = next((name for name in NO_RUN if (out / name).exists()), None)
    if found is not None:
        raise TrainError(f"--out {out}: is no folder of a run, it holds {found}; give a new or empty folder")


def build_features(config: RunConfig, dataset: Dataset, engine: Engine, world: World, quiet: bool) -> FeatureCache:
    """The frozen encoder's features of the whole dataset, made once for all runs and kept beside it; each rank encodes
    its part of the shards.
    """
    folder = dataset.folder.with_name(dataset.folder.name + FEATURES)
    cache = FeatureCache(folder, engine.encoder_hash, config.model.vision.image_size, config.data.feature_type)
    say(f"features: {cache.path(dataset.fingerprint)}", quiet)
    return cache.build(
        dataset,
        lambda frames: engine.model.encode_frames(frames.to(world.device)),
        share=(world.rank, world.size),
        met=Rounds(world, config.train.startup_timeout_seconds),
    )


def begin(training: Training, out: Path, quiet: bool) -> None:
    """Restore the newest verified checkpoint, if there is one, and write down what this run is."""
    first = training.world.rank == 0
    if first:
        sweep(out / CHECKPOINTS)
    training.world.wait()
    torch.manual_seed(training.config.train.seed)
    path, lines = find_checkpoint(out, training.ranks)
    if path is not None:
        lines += [f"resume: {path}", *restore(training, path)]
    for line in lines:
        say(line, quiet)
    if not first:
        return
    (out / STOPPED).unlink(missing_ok=True)
    replace_synced(out / "config.json", training.config.to_json().encode())
    training.loader.tokenizer.save(out / TOKENIZER)


def run(training: Training, out: Path, peak: Peak, lease: Lease | None, began: float, quiet: bool) -> Path:
    """Step, log and save until the end or a stop; returns the newest checkpoint."""
    config, world, engine = training.config, training.world, training.engine
    meter, cadence = Meter(config, peak, world.size), Cadence(config, world, began)
    energy = EnergyMeter(world)
    held_out = HeldOut(config, training.loader) if config.train.eval_every_steps else None
    spikes = Spikes(config.safety, training.recent_losses)
    watchdog = Watchdog(world, config.train.startup_timeout_seconds, config.train.step_timeout_seconds)
    with (
        StopSignals() as signals,
        log_of(training, out, quiet) as log,
        Keeper(training, out, log, lease) as keeper,
        watchdog,
    ):
        while training.step < cadence.last_step:
            began = time.perf_counter()
            metrics = training_step(config, engine, training.loader, training.optimizer, world, training.step)
            meter.add(metrics, time.perf_counter() - began)
            note(training, metrics, log)
            keeper.note()
            if spikes.seen(metrics.loss):
                keeper.go_back()
                continue
            if log_due(config, metrics):
                gates = engine.gates(world)
                rates = meter.take(world) | energy.take()
                if held_out and eval_due(config, metrics):
                    rates |= held_out.measure(engine, world)
                log.write(row_of(metrics, engine.model, gates, rates, training.skipped_steps))
                name_slow_rank(training, log)
            every = config.safety.check_weights_every_steps
            if every and training.step % every == 0:
                check_weights(engine, world, training.step)
            due = cadence.after(training.step, signals)
            if due.save:
                keeper.save(due.save)
            if due.stop is not None:
                log.say(
                    f"{due.stop.reason}: the same command goes on from {keeper.wait() or 'the start: nothing is saved'}"
                )
                due.stop.leave(out, training.step, world.rank == 0)
        newest = keeper.wait()
    if newest is None:
        cure = "free some space or mend the disk, then run again"
        raise TrainError(f"--out {out}: step {training.step} is done and no save has succeeded; {cure}")
    return newest


def name_slow_rank(training: Training, log: Log | Silent) -> None:
    """Say which rank the others wait for, if one is much slower than the median."""
    world, factor = training.world, training.config.safety.slow_rank_factor
    seconds = world.phases.take()
    if factor and world.size > 1:
        slow = slowest(world, seconds, training.config.train.log_every_steps)
        if slow.holds_up(factor):
            log.say(f"step {training.step}: {slow}")


def log_of(training: Training, out: Path, quiet: bool) -> Log | Silent:
    """The first rank writes for all."""
    if training.world.rank:
        return Silent()
    train = training.config.train
    return Log(out, training.step, train.steps, quiet, train.wandb_project)


def log_due(config: RunConfig, metrics: Metrics) -> bool:
    """Whether a step is logged: the first, every log_every_steps-th, the last, and every one that was not finite."""
    cadence = metrics.step % config.train.log_every_steps == 0 or eval_due(config, metrics)
    return cadence or metrics.step in (1, config.train.steps) or not metrics.finite


def eval_due(config: RunConfig, metrics: Metrics) -> bool:
    """Whether the held-out loss is measured after a step: every eval_every_steps-th, and the last."""
    every = config.train.eval_every_steps
    return bool(every) and (metrics.step % every == 0 or metrics.step == config.train.steps)


def note(training: Training, metrics: Metrics, log: Log | Silent) -> None:
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
def writable(out: Path) -> Iterator[None]:
    """A log or a ledger that cannot be written is one sentence. Raises TrainError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        cure = "free some space or mend the disk, then run again: the checkpoints are as they were"
        raise TrainError(f"--out {out}: cannot be written ({error}); {cure}") from error


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
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    if torch.cuda.is_available():
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        memory.fill_uninitialized_memory = filled
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)


def summarise(training: Training, out: Path, checkpoint: Path, peak: Peak, seconds: float) -> TrainSummary:
    """The summary, from the run's own metrics, so that a run in many pieces is told as one."""
    rows = read_metrics(out)
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    rates = [row["mfu"] for row in rows]
    total, trained = training.engine.parameters(training.world)
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
        parameters=total,
        trained_parameters=trained,
        pairs_seen=training.step * training.config.train.global_batch_pairs,
        skipped_steps=training.skipped_steps,
        seconds=seconds,
        peak_rss_mb=peak_rss_mb(),
    )
