"""A release of a small model for the tests of this room."""

import json
from pathlib import Path
from typing import Any

import pytest

from xgenvideo.checkpoint import Snapshot, save
from xgenvideo.config import RunConfig, override
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.evaluate.run import evaluate
from xgenvideo.models.video_lm import VideoLM, trainable_state
from xgenvideo.models.vision import encoder_hash
from xgenvideo.release.export import export

STEP = 7


@pytest.fixture(scope="session")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    small_model: VideoLM,
    small_config: RunConfig,
    twins_tokenizer: Tokenizer,
    twins_dataset: Dataset,
) -> Path:
    """A run folder as training leaves it."""
    folder = tmp_path_factory.mktemp("run")
    config = override(small_config, [f"data.shards={twins_dataset.folder}"])
    twins_tokenizer.save(folder / "tokenizer.json")
    lines = [
        {"step": step, "loss_next_token": None if step == 1 else 5 - step / 10, "loss_contrastive": 2.0, "mfu": 0.25}
        for step in range(1, 13)
    ]
    peak = {"flops_per_second": 1.5e11, "source": "measured: fp32 matrix product"}
    (folder / "machine.json").write_text(json.dumps(peak), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    state = {"encoder_hash": encoder_hash(small_model.vision), "loader": {"fingerprint": twins_dataset.fingerprint}}
    save(folder / "checkpoints", Snapshot(STEP, config, {"model": trainable_state(small_model)}, state), keep=2)
    return folder


@pytest.fixture(scope="session")
def evaluation(
    small_model: VideoLM, twins_tokenizer: Tokenizer, twins_dataset: Dataset, small_config: RunConfig
) -> dict[str, Any]:
    return evaluate(small_model, twins_tokenizer, twins_dataset, small_config, limit=4)


@pytest.fixture(scope="session")
def release(run: Path, evaluation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release in shards of at most 200 kB; `export` has loaded it in a fresh process."""
    return export(run, tmp_path_factory.mktemp("out") / "release", evaluation=evaluation, max_shard_bytes=200_000)
