"""Fit the tiny recipe's frozen encoder on generated frames, without labels, and write its weights.

    python scripts/fit_tiny_encoder.py --seconds 240 --out src/xgenvideo/models/weights/tiny_vision.safetensors

Things are coloured and grounds are grey, so image moments find them: connected regions of vivid pixels, each with its
middle, its mean colour and its outline. The patch feature at a thing's middle is to name all three, each as smooth
functions that a linear layer can read (random Fourier features, Rahimi and Recht 2007); all other patches are to say
that nothing is there. Only pixels are read: captions, names and the generator's own places are not.
"""

import argparse
import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from xgenvideo import recipes
from xgenvideo.data.generate.render import draw_ground, draw_state
from xgenvideo.data.generate.scenes import make_twins
from xgenvideo.models.vision import DEVIATION, MEAN, FrozenVision

BATCH, LR, WARMUP_STEPS = 96, 1.5e-3, 100
SCENES, FRAMES_A_SCENE, SEED = 5000, 6, 90_001
VIVID_LEVELS, LEAST_AREA = 60, 150  # of 255: far over grounds and codec noise; in pixels of 256 x 256
OUTLINE, OUTLINE_PARTS = 12, 12  # an outline is 12 x 12 pixels, told by its 12 main components
COLOUR_WAVES, COLOUR_WIDTH = 40, 0.35
REACH = 0.13  # how far from its middle a thing's patch may be, as a fraction of the frame: about half a patch
EMPTY, PRESENT = 4.0, 2.0


@dataclass(frozen=True)
class Region:
    """A connected region of vivid pixels: middle (0-1), mean colour [3] (0-1), outline [OUTLINE * OUTLINE] (0-1)."""

    x: float
    y: float
    colour: NDArray[np.float32]
    outline: NDArray[np.float32]


def find_regions(picture: NDArray[np.uint8]) -> list[Region]:
    """The things in a picture [H W 3] RGB."""
    vivid = (picture.max(axis=2).astype(int) - picture.min(axis=2) > VIVID_LEVELS).astype(np.uint8)
    count, labels, boxes, middles = cv2.connectedComponentsWithStats(vivid)
    regions = []
    for i in range(1, count):
        left, top, width, height, area = boxes[i].tolist()
        if area < LEAST_AREA:
            continue
        mask = (labels[top : top + height, left : left + width] == i).astype(np.float32)
        colour = picture[labels == i].mean(axis=0) / 255
        outline = cv2.resize(mask, (OUTLINE, OUTLINE), interpolation=cv2.INTER_AREA).ravel()
        x, y = middles[i] / picture.shape[0]
        regions.append(Region(float(x), float(y), colour.astype(np.float32), outline.astype(np.float32)))
    return regions


def draw_pool(size: int) -> tuple[Tensor, list[list[Region]]]:
    """Frames [N 3 size size] uint8 of generated scenes, with the traces that JPEG leaves, and what is in each."""
    rng = np.random.default_rng(SEED)
    frames, found = [], []
    for index in range(SCENES):
        scene = make_twins(SEED, index)[0]
        ground, states = draw_ground(scene.background, 256), list(dict.fromkeys(scene.states))
        for place in rng.permutation(len(states))[:FRAMES_A_SCENE]:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(75, 96))]
            packed = cv2.imencode(".jpg", draw_state(ground, states[place])[:, :, ::-1], quality)[1]
            whole = cv2.imdecode(packed, cv2.IMREAD_COLOR)
            assert whole is not None, "a picture that was just packed"
            picture = np.ascontiguousarray(whole[:, :, ::-1], dtype=np.uint8)
            found.append(find_regions(picture))
            small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
            frames.append(torch.from_numpy(small).permute(2, 0, 1))
    return torch.stack(frames), found


class Teller:
    """What the feature of a patch is to say. Its random numbers and main components are fixed once, from the pool."""

    def __init__(self, found: list[list[Region]], width: int, grid: int) -> None:
        rng = np.random.default_rng(SEED)
        outlines = np.stack([region.outline for regions in found for region in regions])
        self.mean_outline = outlines.mean(axis=0)
        axes = np.linalg.svd((outlines - self.mean_outline)[:20_000], full_matrices=False)[2]
        self.axes = axes[:OUTLINE_PARTS].T
        self.spread = float(((outlines - self.mean_outline) @ self.axes).std(axis=0).mean())
        self.waves = rng.normal(0, 1 / COLOUR_WIDTH, (3, COLOUR_WAVES))
        self.phases = rng.uniform(0, 2 * np.pi, COLOUR_WAVES)
        told = 1 + 10 + COLOUR_WAVES + OUTLINE_PARTS
        self.turn = np.linalg.qr(rng.normal(size=(width, width)))[0][:told].astype(np.float32)
        middles = (np.arange(grid) + 0.5) / grid
        self.middles = np.stack(np.meshgrid(middles, middles), axis=-1).reshape(-1, 2)

    def describe(self, region: Region) -> NDArray[np.float64]:
        """One region as numbers of about unit size: there, place, colour, outline."""
        place = 2 * np.array([region.x, region.y]) - 1
        waves = [1.5 * place, *(f(k * np.pi / 2 * place) for k in (1, 2) for f in (np.sin, np.cos))]
        colour = np.cos(region.colour @ self.waves + self.phases) * 1.2
        outline = (region.outline - self.mean_outline) @ self.axes / self.spread
        return np.concatenate(([-PRESENT], *waves, colour, outline))

    def features(self, regions: list[Region]) -> NDArray[np.float32]:
        """Wanted features [P W] of one frame."""
        empty = np.zeros(len(self.turn))
        empty[0] = EMPTY
        told = np.tile(empty, (len(self.middles), 1))
        for region in regions:
            away = np.square(self.middles - (region.x, region.y)).sum(axis=1)
            share = np.minimum(1, 1.15 * np.exp(-away / (2 * REACH**2)))[:, None]
            told = told * (1 - share) + share * self.describe(region)
        return (told @ self.turn).astype(np.float32)


def fit(seconds: float) -> FrozenVision:
    """Train the encoder for `seconds` of processor time, the drawing of its pool apart."""
    torch.manual_seed(SEED)
    config = dataclasses.replace(recipes.find("tiny").model.vision, weights="random:0")
    vision = FrozenVision(config)
    vision.tower.requires_grad_(True)
    parameters = list(vision.tower.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    pool, found = draw_pool(config.image_size)
    teller = Teller(found, config.width, config.image_size // config.patch)
    print(f"{len(pool)} frames, {sum(map(len, found)) / len(found):.2f} things a frame", flush=True)
    start, step, spent = time.process_time(), 0, 0.0
    while (spent := (time.process_time() - start) / seconds) < 1:
        lr = LR * min(1, (step + 1) / WARMUP_STEPS) * (0.01 + 0.495 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        chosen = torch.randint(len(pool), (BATCH,))
        wanted = torch.from_numpy(np.stack([teller.features(found[i]) for i in chosen.tolist()]))
        pixels = (pool[chosen].float() / 255 - mean) / deviation
        features = vision.tower(pixel_values=pixels).last_hidden_state[:, 1:]
        error = (features - wanted).square().sum(-1).mean()
        optimizer.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            share = error.item() / (wanted - wanted.mean((0, 1))).square().sum(-1).mean().item()
            print(f"step {step}: {share:.4f} of the variance of a feature is missed", flush=True)
    return vision


def main() -> None:
    """Fit and save in bfloat16 (half the bytes; the features differ by less than training notices)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="processor seconds of training")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    state = fit(arguments.seconds).tower.state_dict()
    floats = {name: tensor.bfloat16() for name, tensor in state.items() if tensor.is_floating_point()}
    save_file(floats, arguments.out)


if __name__ == "__main__":
    main()
