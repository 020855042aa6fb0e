"""From a run in memory to a snapshot and back: what is saved, and what a run refuses to continue from."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xgenvideo import __version__
from xgenvideo.checkpoint import Ranks, Snapshot, load, load_into, search
from xgenvideo.checkpoint.run import CHECKPOINTS, check_encoder
from xgenvideo.config import LayoutConfig, RunConfig, SafetyConfig
from xgenvideo.data.loader import Loader
from xgenvideo.errors import CheckpointError, ConfigError, TrainError
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.parallel.engine import Engine
from xgenvideo.parallel.world import World
from xgenvideo.train.optimizer import model_tensors, optimizer_tensors

# Settings that a run may change when it goes on. train.steps stretches the rest of the learning-rate schedule. A path
# may move: the dataset is known by its fingerprint, the tokenizer and the encoder's weights by their hashes. Everything
# else decides what is learnt, and is refused.
MAY_CHANGE = (
    "name",
    "data.shards",
    "data.blend",  # the loader compares what is in it, wherever it lies
    "data.tokenizer",
    "data.pairs_expected",
    "data.workers",
    "data.worker_timeout_seconds",
    "data.bad_share",
    "model.vision.weights",
    "model.decoder_from",
    "train.steps",
    "train.stop_after_steps",
    "train.save_every_steps",
    "train.keep_checkpoints",
    "train.log_every_steps",
    "train.eval_every_steps",
    "train.eval_batches",
    "train.threads",
    "train.recompute",
    "train.recompute_budget_gib",
    "train.compile",
    "train.flex_attention",
    "train.startup_timeout_seconds",
    "train.step_timeout_seconds",
    "train.wandb_project",
    *(f"safety.{spec.name}" for spec in dataclasses.fields(SafetyConfig)),
)
# Another layout gives the same losses, unless negatives come from a microbatch alone.
LAYOUT = tuple(f"layout.{spec.name}" for spec in dataclasses.fields(LayoutConfig))


@dataclass
class Training:
    """A run in memory. `step`: optimizer steps done; `skipped_steps`: those that were not finite, all and in a row;
    `recent_losses` and `rewinds` (ways back in the whole run): of the watch for loss spikes.
    """

    config: RunConfig
    engine: Engine
    world: World
    ranks: Ranks
    loader: Loader
    optimizer: torch.optim.AdamW
    tokenizer_sha256: str
    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)
    rewinds: int = 0
    started_from: Path | None = None

    @property
    def model(self) -> VideoLM:
        """What this rank holds of the model."""
        return self.engine.model


def snapshot_of(training: Training, ledger: dict[str, int] | None = None) -> Snapshot:
    """Everything that the next step depends on, and where the `ledger` stands. The frozen encoder and the dataset are
    named, not saved.
    """
    tensors = {
        "model": model_tensors(training.engine.pieces),
        "optimizer": optimizer_tensors(training.engine.pieces, training.optimizer),
    }
    state = {
        "loader": training.loader.state(),
        "skipped_steps": training.skipped_steps,
        "skipped_in_a_row": training.skipped_in_a_row,
        "recent_losses": list(training.recent_losses),
        "rewinds": training.rewinds,
        "ledger": ledger or {},
        "dataset_fingerprint": training.loader.dataset.fingerprint,
        "encoder_hash": training.engine.encoder_hash,
        "tokenizer_sha256": training.tokenizer_sha256,
        "xgenvideo_version": __version__,
        "torch_version": torch.__version__,
        "device": str(training.model.logit_scale.device),
        "threads": torch.get_num_threads(),
    }
    return Snapshot(training.step, training.config, tensors, state, random_states())


def restore(training: Training, path: Path) -> list[str]:
    """Go on from the checkpoint at `path`; returns what a person should know, one line each.

    Raises CheckpointError for another model or frozen encoder, ConfigError for settings that decide what is learnt,
    DataError for another dataset.
    """
    snapshot = load(path, parts=())
    state = snapshot.state
    check_settings(path, snapshot.config, training.config)
    check_encoder(path, state.get("encoder_hash"), training.engine.encoder_hash)
    if state["tokenizer_sha256"] != training.tokenizer_sha256:
        raise CheckpointError(
            f"{path}: was trained with another tokenizer; give the dataset of this run, or a new --out"
        )
    if snapshot.step > training.config.train.steps:
        raise ConfigError(
            "train.steps", training.config.train.steps, f"must be at least the {snapshot.step} steps done"
        )
    training.loader.load_state(state["loader"])
    own = load_into(path, snapshot_of(training).tensors, training.ranks).rank_state
    if own:
        restore_random(own)
    training.step, training.started_from = snapshot.step, path
    training.skipped_steps, training.skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]
    training.recent_losses[:] = state.get("recent_losses", [])
    training.rewinds = state.get("rewinds", 0)  # checkpoints of before it was saved have none
    return notes(snapshot, training)


def notes(snapshot: Snapshot, training: Training) -> list[str]:
    """What differs from the run that saved the snapshot and is allowed to."""
    own = snapshot_of(training).state
    changed = differences(snapshot.config, training.config)
    lines = [f"changed: {name} {before!r} -> {after!r}" for name, (before, after) in changed.items()]
    for name in ("xgenvideo_version", "torch_version", "device", "threads"):
        if own[name] != snapshot.state.get(name):
            before = snapshot.state.get(name)
            lines.append(f"{name} was {before}, is {own[name]}: not bitwise what the same machine would give")
    return lines


def find_checkpoint(out: Path, ranks: Ranks) -> tuple[Path | None, list[str]]:
    """The checkpoint to go on from, if any, and a line for each newer one that is passed over.

    Raises TrainError when there are checkpoints and none verifies: starting from zero would waste what they hold.
    """
    found = search(out / CHECKPOINTS, ranks)
    if found.newest is None and found.refused:
        cure = "mend or restore one, or give another --out to start from zero"
        raise TrainError(f"{out}: none of its checkpoints verifies: {'; '.join(found.refused.values())}; {cure}")
    return found.newest, [f"passed over: {reason}" for reason in found.refused.values()]


def check_settings(path: Path, saved: RunConfig, config: RunConfig) -> None:
    """Raise ConfigError for settings that differ from the saved ones and are not in MAY_CHANGE."""
    may_change = (*MAY_CHANGE, *(LAYOUT if config.objective.contrastive_scope == "global" else ()))
    refused = {name: pair for name, pair in differences(saved, config).items() if name not in may_change}
    if not refused:
        return
    first, (_, value) = next(iter(refused.items()))
    listed = ", ".join(f"{name} was {before!r}, is {after!r}" for name, (before, after) in refused.items())
    rule = f"a run goes on with the settings it began with, and {path} has others: {listed}. Set them back, or give"
    raise ConfigError(first, value, f"{rule} another --out; what may change is {', '.join(may_change)}")


def differences(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the settings that differ, with both values."""
    old, new = flat(dataclasses.asdict(before)), flat(dataclasses.asdict(after))
    return {name: (old.get(name), new.get(name)) for name in {**old, **new} if old.get(name) != new.get(name)}


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def random_states() -> dict[str, Tensor]:
    """The state of torch's generators: CPU, and every GPU where one is used."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random(states: dict[str, Tensor]) -> None:
    """Take back what `random_states` gave; GPUs that are not here are left out."""
    torch.set_rng_state(states["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda{i}"], i)


def file_sha256(path: Path) -> str:
    """SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
