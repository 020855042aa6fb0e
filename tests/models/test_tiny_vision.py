"""The encoder that is shipped for the tiny recipe: what a linear layer can read from its patch features."""

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from xgenvideo.data.generate.render import draw_ground, draw_state
from xgenvideo.data.generate.scenes import make_twins
from xgenvideo.data.generate.story import COLOURS, Placed
from xgenvideo.models.vision import build_vision
from xgenvideo.recipes import find

SEED = 4242  # not the seed that the weights were fitted on


@pytest.fixture(scope="module")
def told() -> tuple[Tensor, list[Placed]]:
    """Features [N P W] of frames that show one thing well inside, and that thing."""
    config = find("tiny").model.vision
    pictures, things = [], []
    for index in range(400):
        scene = make_twins(SEED, index)[0]
        inside = [s for s in dict.fromkeys(scene.states) if len(s) == 1 and 0.1 < s[0].x < 0.9 and 0.1 < s[0].y < 0.9]
        for state in inside[:2]:
            picture = draw_state(draw_ground(scene.background, 256), state)
            small = cv2.resize(picture, (config.image_size, config.image_size), interpolation=cv2.INTER_AREA)
            pictures.append(torch.from_numpy(np.asarray(small)).permute(2, 0, 1))
            things.append(state[0])
    return build_vision(config)(torch.stack(pictures)), things


def fitted(features: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Ridge regression from features [N W] fitted on 70 %: what it says of the rest, and what is wanted there."""
    rows = torch.cat((features, torch.ones(len(features), 1)), dim=1)
    train = int(0.7 * len(rows))
    square = rows[:train].T @ rows[:train] + torch.eye(rows.shape[1])
    return rows[train:] @ torch.linalg.solve(square, rows[:train].T @ wanted[:train]), wanted[train:]


def test_place_is_linear_in_the_features(told: tuple[Tensor, list[Placed]]) -> None:
    """Without it no model of this size learns which way a thing moves: see docs/log.md."""
    features, things = told
    place, wanted = fitted(features.mean(dim=1), torch.tensor([(thing.x, thing.y) for thing in things]))
    left = (place - wanted).square().mean(dim=0) / wanted.var(dim=0)
    assert float(left.max()) < 0.1


def test_colour_is_linear_in_the_features(told: tuple[Tensor, list[Placed]]) -> None:
    features, things = told
    names = list(COLOURS)
    numbers = torch.tensor([names.index(thing.thing.colour) for thing in things])
    said, wanted = fitted(features.mean(dim=1), torch.nn.functional.one_hot(numbers, len(names)).float())
    assert float((said.argmax(1) == wanted.argmax(1)).float().mean()) > 0.97
