"""Going on with a run: the same config in the same directory, the newest checkpoint that verifies, state put back."""

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from xgenvideo.checkpoint import Checkpoint, checkpoints, load_checkpoint, newest_verified
from xgenvideo.config import RunConfig, load
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import CheckpointError, ConfigError
from xgenvideo.models.vision import encoder_hash

if TYPE_CHECKING:
    from xgenvideo.train.loop import Run

# What may differ between two calls of one run: it changes when things are written, never what is computed.
FREE = (
    "train.stop_after_steps",
    "train.log_every_steps",
    "train.save_every_steps",
    "train.keep_checkpoints",
    "train.eval_every_steps",
)


def claim(out: Path, config: RunConfig, tokenizer: Tokenizer) -> None:
    """Write config.json and tokenizer.json of a new run; refuse another config for an old one. Raises ConfigError."""
    file = out / "config.json"
    if file.exists():
        differing = _differing(asdict(load(file)), asdict(config))
        for name, (old, new) in differing.items():
            raise ConfigError(
                name, new, f"the run in {out} was started with {old!r}; choose another --out or that value"
            )
        return
    if checkpoints(out / "checkpoints"):
        raise CheckpointError(f"{file}: is missing though there are checkpoints; put it back or choose another --out")
    tokenizer.save(out / "tokenizer.json")
    temporary = out / "config.json.tmp"
    config.save(temporary)
    os.replace(temporary, file)


def _differing(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings by dotted name that differ and decide what is computed."""
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in new.items():
        name, before = prefix + key, old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            found |= _differing(before, value, name + ".")
        elif value != before and name not in FREE:
            found[name] = (before, value)
    return found


def restore(run: "Run", folder: Path) -> None:
    """Put the newest verified checkpoint into a run; a run without any starts at step 0.

    Says on stderr which newer ones were passed over and why. Raises CheckpointError where there are checkpoints and none verifies.
    """
    found = newest_verified(folder) if folder.is_dir() else None
    for reason in found.refused if found else ():
        print(f"passed over: {reason}", file=sys.stderr)
    if found is None or found.newest is None:
        if found and found.refused:
            raise CheckpointError(
                f"{folder}: none of {len(found.refused)} checkpoints verifies; a run is never restarted over them. "
                "Restore one from a backup, or choose another --out"
            )
        return
    put_back(run, load_checkpoint(found.newest))


def put_back(run: "Run", checkpoint: Checkpoint) -> None:
    """All state of a checkpoint into a run. Raises CheckpointError where the frozen encoder or a tensor is another."""
    own = encoder_hash(run.model.vision)
    if checkpoint.state["encoder"] != own:
        raise CheckpointError(
            f"step {checkpoint.step}: was trained on the encoder {checkpoint.state['encoder'][:16]}, model.vision.weights "
            f"now gives {own[:16]}; use the same weights"
        )
    missing, unexpected = run.model.load_state_dict(checkpoint.tensors["model"], strict=False)
    missing = [name for name in missing if not name.startswith("vision.")]
    if missing or unexpected:
        raise CheckpointError(f"step {checkpoint.step}: tensors missing {missing[:5]}, unexpected {unexpected[:5]}")
    run.optimizer.load_state(checkpoint.tensors["optimizer"])
    run.loader.load_state(checkpoint.state["loader"])
    torch.set_rng_state(checkpoint.tensors["random"]["cpu"])
    run.step = checkpoint.step
