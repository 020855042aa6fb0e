"""Small real things that several rooms' tests share: generated twins as a dataset, and a model with open gates."""

import dataclasses
from pathlib import Path

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
from xgenvideo.records import Question, Sample


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


def square_sample(key: str, frames: int = 6, reverse: bool = False, split: str = "train") -> Sample:
    """A red square that moves right (left if `reverse`) over a grey ground, 96 x 64, at 2 frames a second."""
    pictures = []
    for step in range(frames):
        picture = np.full((64, 96, 3), 60, dtype=np.uint8)
        left = 4 + step * 80 // frames
        cv2.rectangle(picture, (left, 24), (left + 12, 36), (0, 0, 255), -1)
        pictures.append(cv2.imencode(".jpg", picture)[1].tobytes())
    jpegs = tuple(reversed(pictures)) if reverse else tuple(pictures)
    direction = ("right", "left")[reverse]
    question = Question("Which way does the square move?", ("right", "left"), int(reverse), "direction")
    pts = tuple(step / 2 for step in range(frames))
    caption = f"A red square moves {direction}, seen in {frames} frames."
    return Sample(key, jpegs, pts, caption, "drawn", (question,), None, split, "CC0-1.0", {"score": 0.5})


@pytest.fixture(scope="session")
def tiny_samples() -> list[Sample]:
    """Ten moving squares in memory: four clips and their reversed twins for training, one such pair held out."""
    samples = []
    for number, frames in enumerate((6, 9, 12, 20, 6)):
        split = "heldout" if number == 4 else "train"
        keys = (f"clip{number}-a", f"clip{number}-b")
        for reverse in (False, True):
            sample = square_sample(keys[reverse], frames, reverse, split)
            samples.append(dataclasses.replace(sample, twin=keys[not reverse], source=f"scene-{number}"))
    return samples


@pytest.fixture
def tiny_dataset(tmp_path: Path, tiny_samples: list[Sample]) -> Dataset:
    """`tiny_samples` in several shards with a tokenizer beside them, in a folder that the test may damage."""
    dataset = write_dataset(tmp_path / "tiny", tiny_samples, {"title": "Moving squares"}, shard_bytes=40_000)
    train_tokenizer(texts(dataset.rows("train")), 320).save(dataset.folder / "tokenizer.json")
    return dataset


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


@pytest.fixture(scope="session")
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
