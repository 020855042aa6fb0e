"""Fit the tiny recipe's frozen encoder on generated frames, without labels, and write its weights.

    python scripts/fit_tiny_encoder.py --seconds 900 --out src/xgenvideo/models/weights/tiny_vision.safetensors

Every patch feature must describe the one thing whose middle lies in or near its patch, so well that a small renderer
can paint the frame again: presence, place, size, colour and a code of the outline, linear in the feature, over a
background that is linear in the mean feature (SPACE, arXiv 2001.02407, without its sampling). A price on presence
makes one patch answer for one thing. Only pixels are compared; captions, names and positions are never read.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from xgenvideo import recipes
from xgenvideo.data.generate.render import key_frames
from xgenvideo.data.generate.scenes import make_twins
from xgenvideo.models.vision import DEVIATION, MEAN, FrozenVision

BATCH, LR, WARMUP_STEPS = 96, 1e-3, 100
PRESENCE_PRICE, PRICED_FROM = 8e-4, 0.1
COARSE, FINE, FINE_FROM = 32, 64, 0.6
SCENES, FRAMES_A_SCENE, SEED = 6000, 5, 90_001
GLYPH, CODE = 14, 12


class Renderer(nn.Module):
    """Patch features to a picture; used for fitting only and then thrown away."""

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.thing = nn.Linear(width, 7 + CODE)
        self.ground = nn.Linear(width, 9)
        self.glyph = nn.Sequential(nn.Linear(CODE, 64), nn.GELU(), nn.Linear(64, GLYPH * GLYPH))
        for layer in (self.thing, self.ground):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        middles = (torch.arange(grid) + 0.5) / grid * 2 - 1
        self.register_buffer("middles", torch.cartesian_prod(middles, middles).flip(-1))

    def forward(self, features: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """features [N P W] -> picture [N 3 size size] in 0..1, presence [N P]."""
        count, patches, width = features.shape
        features = functional.layer_norm(features, (width,))
        told = self.thing(features)
        presence = told[..., 0].sigmoid()
        place = self.middles + 0.4 * told[..., 1:3].tanh()
        zoom = (4 * torch.exp(-0.5 * told[..., 3].tanh())).flatten()
        colour = 1.2 * told[..., 4:7].sigmoid() - 0.1
        glyphs = self.glyph(told[..., 7:]).sigmoid().view(-1, 1, GLYPH, GLYPH)
        shift = -place.reshape(-1, 2) * zoom[:, None]
        zero = torch.zeros_like(zoom)
        affine = torch.stack(
            (torch.stack((zoom, zero, shift[:, 0]), -1), torch.stack((zero, zoom, shift[:, 1]), -1)), dim=1
        )
        where = functional.affine_grid(affine, [count * patches, 1, size, size], align_corners=False)
        cover = functional.grid_sample(glyphs, where, align_corners=False).view(count, patches, size, size)
        cover = cover * presence[..., None, None]
        cover = cover / cover.sum(1, keepdim=True).clamp(min=1)
        ground = self._paint_ground(features.mean(1), size)
        picture = ground * (1 - cover.sum(1, keepdim=True)) + torch.einsum("nphw,npc->nchw", cover, colour)
        return picture, presence

    def _paint_ground(self, mean: Tensor, size: int) -> Tensor:
        """mean feature [N W] -> a linear gradient [N 3 size size]."""
        flat, across, down = self.ground(mean)[..., None, None].chunk(3, dim=1)
        line = torch.linspace(-1, 1, size)
        painted: Tensor = flat + across * line[None, :] + down * line[:, None]
        return painted


def draw_pool(size: int) -> Tensor:
    """Frames [N 3 size size] uint8 of generated scenes, with the traces that JPEG leaves; seeds unlike any demo's."""
    rng = np.random.default_rng(SEED)
    frames = []
    for index in range(SCENES):
        keys = key_frames(make_twins(SEED, index)[0])
        for place in rng.integers(len(keys), size=FRAMES_A_SCENE):
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(75, 96))]
            packed = cv2.imencode(".jpg", keys[place], quality)[1]
            whole = cv2.imdecode(packed, cv2.IMREAD_COLOR)
            assert whole is not None, "a picture that was just packed"
            small = cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA)
            frames.append(torch.from_numpy(small).permute(2, 0, 1))
    return torch.stack(frames)


def fit(seconds: float) -> FrozenVision:
    """Train encoder and renderer for `seconds` of processor time; returns the encoder."""
    torch.manual_seed(SEED)
    config = dataclasses.replace(recipes.find("tiny").model.vision, weights="random:0")
    vision = FrozenVision(config)
    vision.tower.requires_grad_(True)
    renderer = Renderer(config.width, config.image_size // config.patch)
    parameters = [*vision.tower.parameters(), *renderer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.01, fused=True)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
    pool = draw_pool(config.image_size)
    start, step, spent = time.process_time(), 0, 0.0
    while (spent := (time.process_time() - start) / seconds) < 1:
        lr = LR * min(1, (step + 1) / WARMUP_STEPS) * (0.02 + 0.49 * (1 + math.cos(math.pi * spent)))
        for group in optimizer.param_groups:
            group["lr"] = lr
        frames = pool[torch.randint(len(pool), (BATCH,))].float() / 255
        size = COARSE if spent < FINE_FROM else FINE
        features = vision.tower(pixel_values=(frames - mean) / deviation).last_hidden_state[:, 1:]
        picture, presence = renderer(features, size)
        error = (picture - functional.interpolate(frames, (size, size), mode="area")).square().sum(1).mean()
        price = PRESENCE_PRICE if spent > PRICED_FROM else 0.0
        optimizer.zero_grad()
        (3 * error + price * presence.sum(1).mean()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        if step % 200 == 0:
            things = presence.sum(1).mean().item()
            print(f"step {step}: squared error {error.item():.5f} a pixel, {things:.2f} things a frame", flush=True)
    return vision


def main() -> None:
    """Fit and save in bfloat16 (half the bytes; the features differ by less than training notices)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900, help="processor seconds of training")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    state = fit(arguments.seconds).tower.state_dict()
    floats = {name: tensor.bfloat16() for name, tensor in state.items() if tensor.is_floating_point()}
    save_file(floats, arguments.out)


if __name__ == "__main__":
    main()
