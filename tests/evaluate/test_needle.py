"""A needle hidden in a haystack: the grid counts what a model that knows the needle finds, and one that does not."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from xgenvideo.config import RunConfig
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError
from xgenvideo.evaluate import needle
from xgenvideo.evaluate.needle import heat_map, needle_grid, report
from xgenvideo.infer.release import Release
from xgenvideo.models.video_lm import VideoLM


@pytest.fixture(scope="module")
def release(small_model: VideoLM, small_config: RunConfig, twins_tokenizer: Tokenizer) -> Release:
    return Release(Path("nowhere"), small_model, twins_tokenizer, small_config, {"short_side": 256}, {})


def test_the_grid_has_every_length_and_position(release: Release) -> None:
    cells = needle_grid(release, (40, 96), (0.0, 0.5, 1.0), needles=2)
    assert [(cell.seconds, cell.position) for cell in cells] == [(s, p) for s in (40, 96) for p in (0.0, 0.5, 1.0)]
    assert {cell.windows for cell in cells} == {2, 3}
    assert all(0 <= cell.searched <= 2 and 0 < cell.lucky < cell.questions for cell in cells)


def test_the_window_that_shows_the_needle_counts_as_found(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []

    def watched(release: Release, frames: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[type-arg]
        hay = needle._hay(release, 7_000_001, len(frames))
        changed = np.flatnonzero((frames != hay).any(axis=(1, 2, 3)))
        window = int(changed[len(changed) // 2]) // release.config.data.frames
        shown.append(window)
        vectors = torch.zeros(-(-len(frames) // release.config.data.frames), release.config.model.embedding)
        vectors[window] = 1.0
        return torch.zeros(1, 8, release.config.model.resampler.width), vectors

    monkeypatch.setattr(needle, "_watch", watched)
    monkeypatch.setattr(needle, "embed_text", lambda *_: np.ones(release.config.model.embedding, np.float32))
    cells = needle_grid(release, (128,), (0.0, 0.5, 1.0), needles=2)
    assert all(cell.searched == cell.needles for cell in cells)
    assert len(set(shown)) > 1
    monkeypatch.setattr(needle, "embed_text", lambda *_: -np.ones(release.config.model.embedding, np.float32))
    assert sum(cell.searched for cell in needle_grid(release, (128,), (0.5,), needles=2)) == 0


def test_the_map_has_a_cell_for_each_and_the_report_adds_up(release: Release) -> None:
    cells = needle_grid(release, (40,), (0.0, 1.0), needles=1)
    drawn = ElementTree.fromstring(heat_map(cells))
    assert len([one for one in drawn.iter() if one.tag.endswith("rect")]) == 4
    found = report(cells)
    assert found["searched"] == sum(cell.searched for cell in cells) / 2
    with pytest.raises(ConfigError, match="lengths_seconds"):
        needle_grid(release, (1,), (0.0,), needles=1)
