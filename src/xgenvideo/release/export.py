"""Write a release: to a temporary name, hashed, read back by a fresh process, then renamed into place."""

import dataclasses
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from xgenvideo.checkpoint import Run, load, load_run
from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import Dataset, open_dataset, sha256_of
from xgenvideo.data.shards import sync
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import DataError, ReleaseError
from xgenvideo.infer.probe import logits_digest, weights_digest
from xgenvideo.infer.release import (
    CONFIG,
    DESCRIPTION,
    FORMAT,
    VERSION,
    identity_of,
)
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.models.vision import encoder_hash
from xgenvideo.release.card import CARD, model_card
from xgenvideo.release.check import check_fresh, check_stranger
from xgenvideo.release.figures import run_figures
from xgenvideo.release.huggingface import hub_files
from xgenvideo.release.weights import MAX_SHARD_BYTES, write_weights

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
    trained = load_run(Path(run))
    opened = _dataset(trained, dataset)
    figures = run_figures(Path(run), trained.step, trained.config, trained.model, opened, evaluation)
    return write_release(trained.model, trained.tokenizer, trained.config, figures, Path(out), max_shard_bytes, licence)


def _dataset(trained: Run, folder: Path | None) -> Dataset | None:
    """The dataset of the card. One that is named must be the one in the checkpoint's loader state."""
    shards = trained.config.data.shards
    if folder is None and (not shards or not Path(shards).is_dir()):
        return None
    dataset = open_dataset(Path(folder or shards))
    loader = load(trained.checkpoint, parts=()).state.get("loader")
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
    """Publish a model as the folder `out`, which must not be there yet; returns it.

    Before the rename fresh processes load the folder, one with this program and one with transformers alone, and must
    get the same logits, bit for bit. A death on the way leaves only a folder named `OUT.tmp-*`. Raises ReleaseError.
    """
    out = Path(out).absolute()
    if out.exists():
        raise ReleaseError(f"{out}: is there already; releases are never overwritten. Give another --out or remove it")
    _check_evaluation(model, figures["evaluation"])
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.name}.tmp-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        _write(temporary, model, tokenizer, config, figures, max_shard_bytes, licence)
        check_fresh(temporary, logits_digest(model))
        check_stranger(temporary, model)
        os.rename(temporary, out)
        sync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def _check_evaluation(model: VideoLM, evaluation: dict[str, Any] | None) -> None:
    """Refuse figures that were measured on other weights than those to be released."""
    measured = evaluation.get("weights") if evaluation else None
    if evaluation and measured != weights_digest(model):
        raise ReleaseError(
            f"the evaluation is of the weights {str(measured)[:12]}, those to be released are "
            f"{weights_digest(model)[:12]}: run `xgv evaluate` again, then export"
        )


def _write(
    folder: Path,
    model: VideoLM,
    tokenizer: Tokenizer,
    config: RunConfig,
    figures: dict[str, Any],
    max_shard_bytes: int,
    licence: str,
) -> None:
    """All files of a release; release.json, which has the hashes of the others, last."""
    write_weights(model.state_dict(), folder, max_shard_bytes)
    _write_text(folder / CONFIG, portable(config).to_json())
    dtype = str(model.logit_scale.dtype).removeprefix("torch.")
    for name, text in hub_files(portable(config), tokenizer.to_json(), tokenizer.size, dtype).items():
        _write_text(folder / name, text)
    _write_text(folder / CARD, model_card(figures, config, licence))
    names = sorted(path.name for path in folder.iterdir())
    files = {name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size} for name in names}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "identity": identity_of(files),
        "encoder_hash": encoder_hash(model.vision),
        "licence": licence,
        "files": files,
        "figures": figures,
    }
    _write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    sync(folder)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)


def portable(config: RunConfig) -> RunConfig:
    """The config without the places on the trainer's disk: shards, and folders of weights that are now in here."""
    weights = config.model.vision.weights
    if weights != "builtin:tiny" and not weights.startswith("random:"):
        weights = Path(weights).name
    vision = dataclasses.replace(config.model.vision, weights=weights)
    model = dataclasses.replace(config.model, vision=vision, decoder_from=Path(config.model.decoder_from).name)
    return dataclasses.replace(config, model=model, data=dataclasses.replace(config.data, shards=""))
