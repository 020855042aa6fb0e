"""Small real things that several rooms' tests share: generated twins as a dataset, and a model with open gates."""

import cv2
import numpy as np
import pytest
import torch

from xgenvideo import recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.generate import key_frames, make_twins
from xgenvideo.data.shards import write_dataset
from xgenvideo.data.text import texts
from xgenvideo.data.tokenizer import Tokenizer, train_tokenizer
from xgenvideo.models.video_lm import VideoLM, build_model
from xgenvideo.records import Sample


def twin_samples(pairs: int, seed: int, split: str) -> list[Sample]:
    """`pairs` pairs of generated twins, their key states as JPEG frames at 2 frames a second."""
    samples = []
    for index in range(pairs):
        keys = (f"{split}{index}a", f"{split}{index}b")
        for key, twin, scene in zip(keys, keys[::-1], make_twins(seed, index), strict=True):
            frames = key_frames(scene, 64)
            jpegs = tuple(
                cv2.imencode(".jpg", np.ascontiguousarray(frame[:, :, ::-1]))[1].tobytes() for frame in frames
            )
            pts = tuple(i / 2 for i in range(len(jpegs)))
            samples.append(
                Sample(key, jpegs, pts, scene.caption, f"scene-{index}", scene.questions, twin, split, "CC0-1.0")
            )
    return samples


@pytest.fixture(scope="session")
def twins_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """12 pairs of twins held out and 4 for training."""
    samples = twin_samples(4, 1, "train") + twin_samples(12, 2, "heldout")
    card = {
        "title": "Generated twins",
        "sources": {"generated": 32},
        "licences": {"CC0-1.0": 32},
        "dropped": {"still": 3},
    }
    return write_dataset(tmp_path_factory.mktemp("twins") / "dataset", samples, card)


@pytest.fixture(scope="session")
def twins_tokenizer(twins_dataset: Dataset) -> Tokenizer:
    """A tokenizer of the training split's texts."""
    return train_tokenizer(texts(twins_dataset.rows("train")), 400)


@pytest.fixture(scope="session")
def small_config() -> RunConfig:
    """The tiny recipe made smaller still, with a random encoder."""
    changes = [
        "model.vision.width=64",
        "model.vision.depth=1",
        "model.vision.mlp=64",
        "model.vision.weights=random:0",
        "model.resampler.queries=8",
        "model.resampler.width=64",
        "model.decoder.width=64",
        "model.decoder.vocab=512",
        "train.global_batch_pairs=8",
        "layout.microbatch_pairs=8",
    ]
    return override(recipes.find("tiny"), changes)


def open_gates(model: VideoLM) -> VideoLM:
    """Open every gate, so that video reaches the logits as it does after training."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() == 1 and "gate" in name:
                parameter.fill_(0.7)
    return model


@pytest.fixture(scope="session")
def small_model(small_config: RunConfig) -> VideoLM:
    """An untrained model with open gates; tests do not change it."""
    return open_gates(build_model(small_config)).eval()
