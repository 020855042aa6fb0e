"""The planner's arithmetic against the real network on the meta device: parameters part by part, FLOPs as counted."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from xgenvideo.config import RunConfig
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.plan import flops
from xgenvideo.plan.parameters import parameters
from xgenvideo.recipes import RECIPES, find


def on_meta(config: RunConfig) -> VideoLM:
    """The network without storage: shapes only."""
    with torch.device("meta"):
        return VideoLM(config.model).to("meta")  # a tensor written out as a list escapes the context


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_those_of_the_model(name: str) -> None:
    config = find(name)
    model = on_meta(config)
    counted = dict.fromkeys(("encoder", "resampler", "embedding", "self", "cross", "rest"), 0)
    for key, tensor in model.named_parameters():
        counted[part_of(key)] += tensor.numel()
    planned = parameters(config.model)
    assert counted == {
        "encoder": planned.encoder,
        "resampler": planned.resampler,
        "embedding": planned.embedding_and_head,
        "self": planned.self_blocks,
        "cross": planned.cross_blocks,
        "rest": planned.norms_and_projections,
    }
    assert planned.trainable == sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)


def part_of(name: str) -> str:
    """The planner's part that a parameter of the network belongs to."""
    prefixes = {
        "vision.": "encoder",
        "resampler.": "resampler",
        "decoder.embedding.": "embedding",
        "decoder.head.": "embedding",
        "decoder.layers.": "self",
        "decoder.cross.": "cross",
    }
    return next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "rest")


@pytest.mark.parametrize(
    ("name", "pairs", "tokens", "frames"), [("tiny", 3, 40, 8), ("one_gpu", 2, 96, 16), ("video_30b", 1, 64, 8)]
)
def test_forward_flops_are_those_torch_counts(name: str, pairs: int, tokens: int, frames: int) -> None:
    config = find(name)
    model = on_meta(config)
    planned = flops.training_flops(config, pairs, tokens, frames, pairs * frames)
    size = config.model.vision.image_size
    pixels = torch.zeros(pairs, frames, 3, size, size, dtype=torch.uint8, device="meta")
    with counter() as encoder:
        features = model.encode_frames(pixels)
    assert encoder.get_total_flops() == planned.encoder
    with counter() as trainable:
        train_forward(model, features, tokens)
    assert trainable.get_total_flops() == planned.trainable_forward_quadratic


def test_training_flops_are_those_torch_counts() -> None:
    """The factor three is exact, down to the input norm's gradient through the resampler's first projection."""
    config = find("tiny")
    model = on_meta(config)
    planned = flops.training_flops(config, 2, 24, 8, 0)
    vision = config.model.vision
    features = torch.zeros(2, 8, vision.patches, vision.width, device="meta")
    with counter() as counted:
        torch.autograd.backward(train_forward(model, features, 24))
    assert counted.get_total_flops() == planned.total_quadratic


def test_cached_features_cost_no_encoder() -> None:
    config = dataclasses.replace(find("tiny"), name="cached")
    cached = flops.training_flops(config, 4, 32, 8, 0)
    assert cached.encoder == 0
    assert cached.trainable_forward == flops.training_flops(config, 4, 32, 8, 32).trainable_forward


def counter() -> FlopCounterMode:
    """A counter that prints nothing."""
    return FlopCounterMode(display=False)


def train_forward(model: VideoLM, features: Tensor, tokens: int) -> Tensor:
    """Everything that is trained, on features [B F P Wv] and `tokens` tokens a pair -> a scalar."""
    pairs, frames = features.shape[:2]
    text = torch.zeros(pairs, tokens, dtype=torch.int64, device="meta")
    seen = torch.ones(pairs, tokens, dtype=torch.bool, device="meta")
    pts = torch.zeros(pairs, frames, device="meta")
    shown = torch.ones(pairs, frames, dtype=torch.bool, device="meta")
    with sdpa_kernel(SDPBackend.MATH):  # the fused backward's count depends on the kernel; the plain one is 2mnk
        latents = model.latents(features, pts, shown)
        video = model.video_embedding(latents)
        logits, caption = model(text, text, text, text[:, 0], latents, seen)
    total: Tensor = logits.sum() + video.sum() + caption.sum()
    return total
