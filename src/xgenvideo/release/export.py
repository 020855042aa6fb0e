"""Write a release: to a temporary name, hashed, read back by a fresh process, then renamed into place."""

import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xgenvideo.checkpoint import Snapshot, load, newest_verified
from xgenvideo.checkpoint.run import CHECKPOINTS, TOKENIZER, check_encoder, restore_weights
from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import Dataset, open_dataset, sha256_of
from xgenvideo.data.shards import sync
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.data.tokenizer import load as load_tokenizer
from xgenvideo.errors import DataError, ReleaseError
from xgenvideo.infer.probe import logits_digest, tensors_digest
from xgenvideo.infer.release import (
    CONFIG,
    DESCRIPTION,
    FORMAT,
    VERSION,
    identity_of,
)
from xgenvideo.models.video_lm import VideoLM, build_model
from xgenvideo.models.vision import build_vision, encoder_hash
from xgenvideo.release.card import CARD, model_card
from xgenvideo.release.check import check_fresh, check_stranger, probe_tensors
from xgenvideo.release.figures import run_figures
from xgenvideo.release.huggingface import hub_files
from xgenvideo.release.weights import MAX_SHARD_BYTES, Weights, in_checkpoint, in_memory, write_weights

LICENCE = "apache-2.0"


def export(
    run: Path,
    out: Path,
    dataset: Path | None = None,
    evaluation: dict[str, Any] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    licence: str = LICENCE,
) -> Path:
    """Release the newest verified checkpoint of a run folder as the folder `out`; returns it.

    `dataset` is the folder that the run was trained on (default: its `data.shards`, where that is still there),
    `evaluation` what `evaluate` returned; without them the model card says that they are not known. Raises
    CheckpointError for a run without a checkpoint, DataError for another dataset than the run's, and ReleaseError.
    """
    run = Path(run)
    checkpoint = newest_verified(run / CHECKPOINTS)
    about = load(checkpoint, parts=())
    config = about.config
    vision = build_vision(config.model.vision)
    check_encoder(checkpoint, about.state.get("encoder_hash"), encoder_hash(vision))
    with torch.device("meta"):
        counted = VideoLM(config.model)
    opened = _dataset(about, dataset)
    figures = run_figures(run, about.step, config, counted, opened, evaluation)
    weights = in_memory(vision.state_dict(prefix="vision.")) | in_checkpoint(checkpoint)
    content = Content(weights, load_tokenizer(run / TOKENIZER), config, figures, encoder_hash(vision))
    return _publish(content, lambda: _trained(checkpoint, config), Path(out), max_shard_bytes, licence)


def _trained(checkpoint: Path, config: RunConfig) -> VideoLM:
    """The model of a checkpoint, whole: what the release is held against."""
    model = build_model(config)
    restore_weights(checkpoint, model, load(checkpoint, parts=("model",)).tensors["model"])
    return model.eval()


def _dataset(about: Snapshot, folder: Path | None) -> Dataset | None:
    """The dataset of the card. One that is named must be the one in the checkpoint's loader state."""
    shards = about.config.data.shards
    if folder is None and (not shards or not (Path(shards) / "dataset.json").is_file()):
        return None
    dataset = open_dataset(Path(folder or shards))
    loader = about.state.get("loader")
    expected = loader.get("fingerprint") if isinstance(loader, dict) else None
    if expected not in (None, dataset.fingerprint):
        raise DataError(
            f"{dataset.folder}: has the fingerprint {dataset.fingerprint[:12]}, the run's is {expected[:12]}; "
            "give the run's own dataset, so that the model card tells the truth"
        )
    return dataset


def write_release(
    model: VideoLM,
    tokenizer: Tokenizer,
    config: RunConfig,
    figures: dict[str, Any],
    out: Path,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    licence: str = LICENCE,
) -> Path:
    """Publish a model that is whole in memory as the folder `out`; returns it. As `export` otherwise."""
    content = Content(in_memory(model.state_dict()), tokenizer, config, figures, encoder_hash(model.vision))
    return _publish(content, lambda: model, Path(out), max_shard_bytes, licence)


@dataclass(frozen=True)
class Content:
    """What goes into a release."""

    weights: Weights
    tokenizer: Tokenizer
    config: RunConfig
    figures: dict[str, Any]
    encoder_hash: str

    @property
    def dtype(self) -> str:
        """Of the trained tensors."""
        return str(self.weights.read("logit_scale").dtype).removeprefix("torch.")


def _publish(content: Content, trained: Callable[[], VideoLM], out: Path, max_shard_bytes: int, licence: str) -> Path:
    """Write the folder `out`, which must not be there yet.

    Before the rename fresh processes load the folder, one with this program and one with transformers alone, and must
    get the logits of the model that `trained` gives, bit for bit. A death on the way leaves only a folder named
    `OUT.tmp-*`. Raises ReleaseError.
    """
    out = out.absolute()
    if out.exists():
        raise ReleaseError(f"{out}: is there already; releases are never overwritten. Give another --out or remove it")
    _check_evaluation(content)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        _write(temporary, content, max_shard_bytes, licence)
        # The model is let go before other processes load theirs.
        model = trained()
        expected, probe = logits_digest(model), probe_tensors(model)
        del model
        check_fresh(temporary, expected)
        check_stranger(temporary, probe)
        os.rename(temporary, out)
        sync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _check_evaluation(content: Content) -> None:
    """Refuse figures that were measured on other weights than those to be released."""
    evaluation, weights = content.figures["evaluation"], content.weights
    if not evaluation:
        return
    measured = evaluation.get("weights")
    released = tensors_digest((name, weights.read(name)) for name in sorted(weights.sizes))
    if measured != released:
        raise ReleaseError(
            f"the evaluation is of the weights {str(measured)[:12]}, those to be released are {released[:12]}: "
            "run `xgv evaluate` again, then export"
        )


def _write(folder: Path, content: Content, max_shard_bytes: int, licence: str) -> None:
    """All files of a release; release.json, which has the hashes of the others, last."""
    write_weights(content.weights, folder, max_shard_bytes)
    config, tokenizer = portable(content.config), content.tokenizer
    _write_text(folder / CONFIG, config.to_json())
    for name, text in hub_files(config, tokenizer.to_json(), tokenizer.size, content.dtype).items():
        _write_text(folder / name, text)
    _write_text(folder / CARD, model_card(content.figures, content.config, licence))
    names = sorted(path.name for path in folder.iterdir())
    files = {name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "identity": identity_of(files),
        "encoder_hash": content.encoder_hash,
        "licence": licence,
        "files": files,
        "figures": content.figures,
    }
    _write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    sync(folder)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)


def portable(config: RunConfig) -> RunConfig:
    """The config without the places on the trainer's disk: shards, and folders whose content is now in here."""
    weights = config.model.vision.weights
    if weights != "builtin:tiny" and not weights.startswith("random:"):
        weights = Path(weights).name
    vision = dataclasses.replace(config.model.vision, weights=weights)
    model = dataclasses.replace(config.model, vision=vision, decoder_from=Path(config.model.decoder_from).name)
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, shards="", tokenizer=""))
