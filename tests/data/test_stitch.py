"""Stitching: clips that follow each other fill the frames, each once, with their times, captions and sources."""

import collections
import dataclasses
import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xgenvideo.config import RunConfig, override
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.index import PLACE
from xgenvideo.data.loader import Loader
from xgenvideo.data.shards import write_dataset
from xgenvideo.data.stitch import Stitched, stitch, stitches_of
from xgenvideo.errors import DataError
from xgenvideo.records import Question, Sample

WORDS = tokenizers.train_tokenizer(["a"], 260)
FRAMES = 8


def clip(source: str, start: float, frames: int, shade: int = 9, **changes: object) -> Sample:
    """A clip of so many frames at 2 a second; each frame has a shade of its own."""
    pictures = [np.full((32, 32, 3), shade + number, np.uint8) for number in range(frames)]
    jpegs = tuple(cv2.imencode(".png", picture)[1].tobytes() for picture in pictures)
    pts = tuple(number / 2 for number in range(frames))
    lineage = {"start": start, "end": start + frames / 2}
    key, caption = f"{source}-{round(start * 2)}", f"At {start:g}."
    made = Sample(key, jpegs, pts, caption, source, licence="CC BY 4.0", lineage=lineage)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def film(tmp_path: Path) -> Dataset:
    """A film of clips 0-2, 2-3.5 | 4.5-5 (after a hole), another's 0-1 and a clip without times, written unordered."""
    asked = (Question("What?", ("this", "that"), 0, "object"),)
    samples = [
        clip("film", 4.5, 1, 100),
        clip("film", 2.0, 3, 50, questions=asked),
        clip("other", 0.0, 2, 150),
        clip("film", 0.0, 4, 20),
        clip("other", 1.0, 2, 200, lineage={}),
        clip("held", 0.0, 4, split="heldout"),
    ]
    return write_dataset(tmp_path / "film", samples, {})


def stitched_config(config: RunConfig, pairs: int, *changes: str) -> RunConfig:
    """The config with stitching to FRAMES frames."""
    named = ["layout.microbatch_pairs=1", "data.group_by_source=false", "data.text_tokens=96", "data.stitch=true"]
    return override(config, [*named, f"data.frames={FRAMES}", f"train.global_batch_pairs={pairs}", *changes])


def test_clips_that_follow_each_other_become_one_sample(film: Dataset, small_config: RunConfig) -> None:
    loader = Loader(film, WORDS, stitched_config(small_config, 4))
    assert loader.epoch_samples == 4
    batch = loader.next_batch()
    assert sorted(batch.keys) == ["film-0+film-4", "film-9", "other-0", "other-2"]
    row = batch.keys.index("film-0+film-4")
    assert batch.pts[row].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 0.0]
    assert batch.frame_mask[row].tolist() == [True] * 7 + [False]
    shades = batch.present_frames()[row].float().mean((1, 2, 3)).round().int().tolist()
    assert shades == [20, 21, 22, 23, 50, 51, 52, 0]
    text = WORDS.decode([token for token in batch.tokens[row].tolist() if token > 5])
    assert "[0.0-2.0 s] At 0. [2.0-3.5 s] At 2." in text
    assert "Question: [2.0-3.5 s] What? Answer: this" in text
    loader.close()


def test_a_stitched_sample_keeps_source_licence_and_the_times_of_its_source(film: Dataset) -> None:
    keys = ["film-4", "film-9"]
    rows = [film.find(key) for key in keys]
    numbers = [film.keys("train").index(key) for key in keys]
    made = stitch(rows, film.places("train")[numbers])
    assert isinstance(made, Stitched)
    assert (made.source, made.licence, made.frames) == ("film", "CC BY 4.0", 4)
    assert made.pts == (0.0, 0.5, 1.0, 2.5), "the hole between them stays in the times"
    assert made.caption == "[0.0-1.5 s] At 2. [2.5-3.0 s] At 4.5."


def test_features_are_stitched_like_frames(tmp_path: Path, film: Dataset, small_config: RunConfig) -> None:
    size = small_config.model.vision.image_size
    cache = FeatureCache(tmp_path / "cache", "hash", size)
    cache.build(film, lambda frames: frames.float().mean((2, 3))[:, None])
    plain, cached = (Loader(film, WORDS, stitched_config(small_config, 4), cache=c) for c in (None, cache))
    for _ in range(3):
        frames, features = plain.next_batch(), cached.next_batch()
        assert frames.keys == features.keys
        assert features.features is not None
        assert torch.equal(features.features[..., 0, :], frames.present_frames().float().mean((-1, -2)).round())
        assert torch.equal(frames.pts, features.pts)
    plain.close()
    cached.close()


def test_a_bad_clip_takes_its_sample_and_a_substitute_comes(tmp_path: Path, small_config: RunConfig) -> None:
    samples = [
        clip("film", 0.0, 2),
        clip("film", 1.0, 2, jpegs=(b"bad", b"bad")),
        *(clip(f"s{i}", 0, 7) for i in range(6)),
    ]
    dataset = write_dataset(tmp_path / "set", samples, {})
    loader = Loader(dataset, WORDS, stitched_config(small_config, 7))
    batch = loader.next_batch()
    assert loader.last.substituted == 1
    assert {key for key, _ in loader.last.bad} == {"film-0+film-2"}
    assert batch.pts.shape == (7, FRAMES)
    loader.close()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 9), st.sampled_from([0.0, 0.0, 0.4, 0.5, -0.1, 9.0])), max_size=40
    ),
    st.integers(1, 12),
    st.randoms(use_true_random=False),
)
def test_every_clip_is_in_one_sample_and_no_two_could_be_joined(
    clips: list[tuple[int, int, float]], limit: int, dice: random.Random
) -> None:
    now: collections.defaultdict[int, float] = collections.defaultdict(float)
    rows = []
    for source, frames, gap in clips:
        start = now[source] + gap
        now[source] = start + frames / 2
        rows.append((len(rows), frames, source, start, start + frames / 2))
    dice.shuffle(rows)
    places = np.array(rows, dtype=PLACE)
    found = stitches_of(places, limit, 2.0)
    assert sorted(found.clips.tolist()) == list(range(len(rows)))
    groups = [places[found.of(number)] for number in range(len(found))]
    assert sum(map(len, groups)) == len(rows)
    assert found.frames.tolist() == [int(group["frames"].sum()) for group in groups]

    def follows(last: np.void, first: np.void) -> bool:
        gap = round(float(first["start"] - last["end"]), 3)
        return bool(last["source"] == first["source"]) and 0 <= gap < 0.5

    for group in groups:
        assert len(group) == 1 or group["frames"].sum() <= limit
        assert all(follows(group[i], group[i + 1]) for i in range(len(group) - 1))
    for left, right in zip(groups, groups[1:], strict=False):
        assert not follows(left[-1], right[0]) or left["frames"].sum() + right["frames"][0] > limit


@settings(max_examples=8, deadline=None)
@given(stages=st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 4)), min_size=1, max_size=3))
def test_each_clip_once_an_epoch_over_stops_and_ranks(
    many: Dataset, small_config: RunConfig, stages: list[tuple[int, int]]
) -> None:
    config, keys, state = stitched_config(small_config, 8, "data.bucket_batches=2"), [], None
    for ranks, batches in stages:
        loaders = [Loader(many, WORDS, config, rank, ranks) for rank in range(ranks)]
        for loader in loaders:
            if state is not None:
                loader.load_state(state)
        keys += [key for _ in range(batches) for loader in loaders for key in loader.next_batch().keys]
        state = json.loads(json.dumps(loaders[0].state()))
        size = loaders[0].epoch_samples
        for loader in loaders:
            loader.close()
    assert size < many.counts["train"]
    for start in range(0, len(keys) - size + 1, size):
        read = [key for sample in keys[start : start + size] for key in sample.split("+")]
        assert sorted(read) == sorted(many.keys("train")), "an epoch loses or repeats clips"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Sources of one to seven adjacent clips of 1 to 5 frames."""
    samples = []
    for source in range(6):
        start = 0.0
        for number in range(1 + source):
            frames = 1 + (source + number) % 5
            samples.append(clip(f"s{source}", start, frames))
            start += frames / 2
    return write_dataset(tmp_path_factory.mktemp("many") / "set", samples, {})


def test_a_resume_with_another_stitching_is_refused(film: Dataset, small_config: RunConfig) -> None:
    config = stitched_config(small_config, 2)
    state = Loader(film, WORDS, config).state()
    for change, message in (
        ("data.stitch=false", "stitched is True, this run has False; resume with the same data.stitch"),
        ("data.frames=6", "resume with the same data.frames"),
    ):
        with pytest.raises(DataError, match=message):
            Loader(film, WORDS, override(config, [change])).load_state(state)
