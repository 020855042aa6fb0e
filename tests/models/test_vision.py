"""The vision tower against transformers' CLIP, and what a checkpoint folder may hold."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, CLIPVisionModel, PreTrainedModel

from xgenvideo.config import VisionConfig
from xgenvideo.errors import ConfigError
from xgenvideo.models.vision import DEVIATION, MEAN, build_vision
from xgenvideo.recipes import find


def sizes(folder: Path) -> VisionConfig:
    """The tiny encoder's sizes, with weights from a folder."""
    return dataclasses.replace(find("tiny").model.vision, weights=str(folder))


def theirs(vision: VisionConfig, activation: str = "gelu") -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.mlp,
        num_hidden_layers=vision.depth,
        num_attention_heads=vision.heads,
        image_size=vision.image_size,
        patch_size=vision.patch,
        hidden_act=activation,
    )


def whole_clip(tower: CLIPVisionConfig) -> CLIPModel:
    text = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=tower.to_dict()))


@pytest.mark.parametrize("whole", [True, False], ids=["a whole CLIP", "its vision tower"])
def test_a_checkpoint_folder_gives_the_features_of_transformers(tmp_path: Path, whole: bool) -> None:
    config = sizes(tmp_path)
    torch.manual_seed(0)
    model: PreTrainedModel = whole_clip(theirs(config)) if whole else CLIPVisionModel(theirs(config))
    model.save_pretrained(tmp_path)
    frames = torch.randint(256, (3, 3, config.image_size, config.image_size), dtype=torch.uint8)
    pixels = (frames.float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    tower = model.eval().vision_model if isinstance(model, CLIPModel) else model.eval()
    with torch.no_grad():
        expected = tower(pixel_values=pixels).last_hidden_state[:, 1:]
    assert torch.equal(build_vision(config)(frames), expected)


def test_starting_values_are_spread_as_transformers_spreads_them() -> None:
    config = dataclasses.replace(find("tiny").model.vision, weights="random:1")
    ours = build_vision(config).tower.state_dict()
    expected = CLIPVisionModel(theirs(config)).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in expected.items()}
    for name, tensor in ours.items():
        if tensor.numel() > 1000:
            assert tensor.std().item() == pytest.approx(expected[name].std().item(), rel=0.1), name


def test_weights_made_for_another_activation_are_refused(tmp_path: Path) -> None:
    config = sizes(tmp_path)
    CLIPVisionModel(theirs(config, "quick_gelu")).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="quick_gelu"):
        build_vision(config)


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    config = sizes(tmp_path)
    CLIPVisionModel(theirs(dataclasses.replace(config, depth=config.depth + 1))).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="do not fit"):
        build_vision(config)
