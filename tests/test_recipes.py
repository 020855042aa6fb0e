"""Recipes: the docstring is the record, the figures of the full run are the stated ones."""

import pytest

from xgenvideo.errors import ConfigError
from xgenvideo.recipes import RECIPES, find


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_valid_and_says_command_cost_and_expectation(name: str) -> None:
    assert find(name).name == name
    text = RECIPES[name].__doc__ or ""
    for part in ("Command:", "Cost:", "Expected:"):
        assert part in text
    assert f" {name}" in text or "demo" in text


def test_an_unknown_recipe_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"recipe = 'huge': no such recipe\. Valid: tiny, one_gpu, video_30b\."):
        find("huge")


def test_video_30b_is_the_stated_run() -> None:
    config = find("video_30b")
    layout, optimizer, model = config.layout, config.optimizer, config.model
    assert (layout.tensor, layout.pipeline, layout.data, layout.world) == (4, 8, 16, 512)
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.95, 0.1)
    assert (optimizer.lr, optimizer.warmup_fraction) == (1.5e-4, 0.02)
    assert (config.train.global_batch_pairs, config.train.save_every_steps) == (2048, 1000)
    assert (config.data.fps, config.data.frames) == (2.0, 64)
    assert (model.vision.width, model.vision.depth, model.vision.patch, model.vision.patches) == (1664, 48, 14, 256)
    assert (model.decoder.width, model.decoder.depth, model.decoder.cross_blocks) == (6144, 48, 8)
    assert config.train.steps == 150_000_000 // 2048
