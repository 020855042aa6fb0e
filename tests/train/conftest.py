"""A dataset with its tokenizer and a run small enough for a step in a few milliseconds."""

from pathlib import Path

import pytest

from xgenvideo.config import RunConfig, override
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.tokenizer import Tokenizer


@pytest.fixture
def run_config(twins_dataset: Dataset, twins_tokenizer: Tokenizer, small_config: RunConfig) -> RunConfig:
    """Eight samples of four scenes, batches of 4, 8 steps, a save every 3."""
    file = Path(twins_dataset.folder) / "tokenizer.json"
    if not file.exists():
        twins_tokenizer.save(file)
    return override(
        small_config,
        [
            f"data.shards={twins_dataset.folder}",
            "data.cache_features=false",
            "train.steps=8",
            "train.global_batch_pairs=4",
            "layout.microbatch_pairs=4",
            "train.save_every_steps=3",
            "train.log_every_steps=2",
        ],
    )
