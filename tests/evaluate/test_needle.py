"""A needle hidden in a haystack: the grid counts what a model that knows the needle finds, and one that does not."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from xgenvideo.config import RunConfig
from xgenvideo.data.generate import make_twins
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError
from xgenvideo.evaluate import needle
from xgenvideo.evaluate.needle import heat_map, needle_grid, report
from xgenvideo.infer import moments
from xgenvideo.infer.release import Release
from xgenvideo.models.video_lm import VideoLM


@pytest.fixture(scope="module")
def release(small_model: VideoLM, small_config: RunConfig, twins_tokenizer: Tokenizer) -> Release:
    return Release(Path("nowhere"), small_model, twins_tokenizer, small_config, {"short_side": 256}, {})


def test_the_grid_has_every_length_and_position(release: Release) -> None:
    cells = needle_grid(release, (40, 96), (0.0, 0.5, 1.0), needles=2)
    assert [(cell.seconds, cell.position) for cell in cells] == [(s, p) for s in (40, 96) for p in (0.0, 0.5, 1.0)]
    assert all(0 <= cell.found <= 2 and 0 < cell.lucky < cell.questions for cell in cells)
    assert len({cell.moments for cell in cells}) == 2


def test_no_clip_of_the_hay_shows_what_the_needle_shows(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[set[str]] = []
    encode = needle._encode

    def watched(release: Release, scene: needle.Scene) -> torch.Tensor:
        drawn.append(needle._things(scene))
        return encode(release, scene)

    monkeypatch.setattr(needle, "_encode", watched)
    scene = make_twins(7_000_000, 0)[0]
    made = needle._needle(release, scene, 7_000_001, 200)
    assert len(made.hay) == 200
    assert drawn[-1] == needle._things(scene)
    assert len(drawn) > 5
    assert all(not things & needle._things(scene) for things in drawn[:-1])


def test_only_the_moment_that_shows_the_needle_counts_as_found(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose embedding says how much of the needle a moment shows finds it everywhere, its opposite nowhere."""
    sign = 1.0
    scene = make_twins(7_000_000, 0)[0]
    hidden = needle._encode(release, scene).flatten(1)

    def read(release: Release, encoded: object) -> moments.Moments:
        spans, shares = [], []
        width = release.config.data.frames // moments.MOMENTS_A_WINDOW
        for features, pts in moments._cut(encoded, width):  # type: ignore[arg-type]
            for part, times in zip(features.flatten(2), pts, strict=True):
                shares.append(float((torch.cdist(part, hidden).min(dim=1).values < 1e-3).float().mean()))
                spans.append((float(times[0]), float(times[-1]) + 0.5))
        vectors = torch.zeros(len(spans), release.config.model.embedding)
        vectors[:, 0] = sign * torch.tensor(shares)
        return moments.Moments(torch.zeros(len(spans), 8, release.config.model.resampler.width), vectors, tuple(spans))

    monkeypatch.setattr(needle, "read_moments", read)
    monkeypatch.setattr(moments, "embed_text", lambda *_: np.ones(release.config.model.embedding, np.float32))
    cells = needle_grid(release, (128,), (0.0, 0.5, 1.0), needles=1)
    assert [cell.found for cell in cells] == [1, 1, 1]
    sign = -1.0
    assert [cell.found for cell in needle_grid(release, (128,), (0.0, 0.5, 1.0), needles=1)] == [0, 0, 0]


def test_the_names_that_are_looked_for_tell_twins_answers_apart_by_nothing() -> None:
    """Twins have other right answers to the same questions, and the same names."""
    for number in range(20):
        one, other = make_twins(11, number)
        assert needle._named(one) == needle._named(other)
        assert all(thing.removeprefix("the ") in needle._named(one).lower() for thing in needle._things(one))


def test_the_map_has_a_cell_for_each_and_the_report_adds_up(release: Release) -> None:
    cells = needle_grid(release, (40,), (0.0, 1.0), needles=1)
    drawn = ElementTree.fromstring(heat_map(cells))
    assert len([one for one in drawn.iter() if one.tag.endswith("rect")]) == 4
    found = report(cells)
    assert found["found"] == sum(cell.found for cell in cells) / 2
    assert found["answered_at_once"] == sum(c.answered_at_once for c in cells) / sum(c.questions for c in cells)
    with pytest.raises(ConfigError, match="lengths_seconds"):
        needle_grid(release, (1,), (0.0,), needles=1)
