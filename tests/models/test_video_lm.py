"""What the architecture promises, tested on small models with open gates."""

import dataclasses

import pytest
import torch
from torch import Tensor

from xgenvideo import recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.models.decoder import CrossBlock
from xgenvideo.models.video_lm import VideoLM, build_model, trainable_state
from xgenvideo.models.vision import encoder_hash

BATCH, FRAMES, TOKENS = 2, 8, 24


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One small batch with two documents a row and two padding frames in the second row."""

    frames: Tensor
    pts: Tensor
    frame_mask: Tensor
    tokens: Tensor
    positions: Tensor
    documents: Tensor
    caption_end: Tensor
    sees_video: Tensor


@pytest.fixture(scope="module")
def model() -> VideoLM:
    """A tiny model whose gates are open, so that video reaches the logits."""
    model = build_model(override(recipes.find("tiny"), ["model.vision.weights=random:0"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.numel() == 1 and "gate" in name:
                parameter.fill_(0.7)
    return model.eval()


@pytest.fixture
def inputs() -> Inputs:
    """See Inputs."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(BATCH, FRAMES, dtype=torch.bool)
    mask[1, 6:] = False
    return Inputs(
        frames=torch.randint(0, 256, (BATCH, FRAMES, 3, 64, 64), dtype=torch.uint8, generator=generator),
        pts=torch.arange(FRAMES).expand(BATCH, FRAMES) / 2,
        frame_mask=mask,
        tokens=torch.randint(4, 1000, (BATCH, TOKENS), generator=generator),
        positions=torch.cat((torch.arange(12), torch.arange(12))).expand(BATCH, TOKENS),
        documents=torch.tensor([0] * 12 + [1] * 12).expand(BATCH, TOKENS),
        caption_end=torch.tensor([9, 11]),
        sees_video=torch.ones(BATCH, TOKENS, dtype=torch.bool),
    )


def latents_of(model: VideoLM, inputs: Inputs) -> Tensor:
    """Latents of the batch's frames."""
    return model.latents(model.encode_frames(inputs.frames), inputs.pts, inputs.frame_mask)


def logits_of(model: VideoLM, inputs: Inputs, latents: Tensor | None) -> Tensor:
    """Logits of the batch."""
    return model.logits(inputs.tokens, inputs.positions, inputs.documents, latents, inputs.sees_video)


@torch.no_grad()
def test_text_embedding_never_sees_the_video(model: VideoLM, inputs: Inputs) -> None:
    text = (inputs.tokens, inputs.positions, inputs.documents, inputs.caption_end)
    logits, first = model(*text, latents_of(model, inputs), inputs.sees_video)
    other = dataclasses.replace(inputs, frames=255 - inputs.frames)
    other_logits, second = model(*text, latents_of(model, other), inputs.sees_video)
    assert torch.equal(first, second)
    assert torch.equal(first, model.text_embedding(*text))
    assert not torch.equal(logits, other_logits)


@torch.no_grad()
def test_tokens_that_may_not_see_video_have_the_logits_of_text_alone(model: VideoLM, inputs: Inputs) -> None:
    sees = inputs.sees_video.clone()
    sees[:, :12] = False
    masked = logits_of(model, dataclasses.replace(inputs, sees_video=sees), latents_of(model, inputs))
    alone = logits_of(model, inputs, None)
    assert torch.equal(masked[:, :12], alone[:, :12])
    assert not torch.equal(masked[:, 12:], alone[:, 12:])


@torch.no_grad()
def test_causal_and_within_one_document(model: VideoLM, inputs: Inputs) -> None:
    latents = latents_of(model, inputs)
    before = logits_of(model, inputs, latents)
    tokens = inputs.tokens.clone()
    tokens[:, 8] += 1
    after = logits_of(model, dataclasses.replace(inputs, tokens=tokens), latents)
    changed = (before != after).any(dim=-1)
    assert not changed[:, :8].any(), "an earlier token changed"
    assert changed[:, 8:12].all(), "a later token of the document did not change"
    assert not changed[:, 12:].any(), "a token of another document changed"


@torch.no_grad()
def test_time_aware(model: VideoLM, inputs: Inputs) -> None:
    latents = latents_of(model, inputs)
    slower = latents_of(model, dataclasses.replace(inputs, pts=inputs.pts * 60))
    assert (latents - slower).abs().max() > 1e-3


@torch.no_grad()
def test_slot_time_ignores_the_clock(inputs: Inputs) -> None:
    config = override(recipes.find("tiny"), ["model.vision.weights=random:0", "model.resampler.time=slot"])
    model = build_model(config)
    slower = dataclasses.replace(inputs, pts=inputs.pts * 60)
    assert torch.equal(latents_of(model, inputs), latents_of(model, slower))


@torch.no_grad()
def test_padding_frames_change_nothing(model: VideoLM, inputs: Inputs) -> None:
    padded = latents_of(model, inputs)
    noise = inputs.frames.clone()
    noise[1, 6:] = 77
    assert torch.equal(padded, latents_of(model, dataclasses.replace(inputs, frames=noise)))
    alone = model.latents(model.encode_frames(inputs.frames[1:, :6]), inputs.pts[1:, :6], inputs.frame_mask[1:, :6])
    torch.testing.assert_close(padded[1:], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_tokens_change_nothing(model: VideoLM, inputs: Inputs) -> None:
    latents = latents_of(model, inputs)
    whole = logits_of(model, inputs, latents)
    short = dataclasses.replace(
        inputs,
        tokens=inputs.tokens[:, :12],
        positions=inputs.positions[:, :12],
        documents=inputs.documents[:, :12],
        sees_video=inputs.sees_video[:, :12],
    )
    torch.testing.assert_close(whole[:, :12], logits_of(model, short, latents), rtol=1e-5, atol=1e-5)


def test_frozen_stays_frozen(inputs: Inputs) -> None:
    model = build_model(override(recipes.find("tiny"), ["model.vision.weights=random:0"])).train()
    before = encoder_hash(model.vision)
    features = model.encode_frames(inputs.frames)
    assert not features.requires_grad
    assert not model.vision.training
    latents = model.latents(features, inputs.pts, inputs.frame_mask)
    (logits_of(model, inputs, latents).sum() + model.video_embedding(latents).sum()).backward()
    torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1).step()
    assert encoder_hash(model.vision) == before
    assert all(parameter.grad is None for parameter in model.vision.parameters())
    assert not any(name.startswith("vision") for name in trainable_state(model))


def test_closed_gates_make_a_text_model(inputs: Inputs) -> None:
    model = build_model(override(recipes.find("tiny"), ["model.vision.weights=random:0"]))
    assert set(model.gates().values()) == {0.0}
    assert torch.equal(logits_of(model, inputs, None), logits_of(model, inputs, latents_of(model, inputs)))


def test_gates_that_start_at_20_are_no_gates(inputs: Inputs) -> None:
    model = build_model(
        override(recipes.find("tiny"), ["model.vision.weights=random:0", "model.decoder.gate_start=20"])
    )
    assert set(model.gates().values()) == {1.0}
    latents = latents_of(model, inputs)
    assert not torch.equal(logits_of(model, inputs, None), logits_of(model, inputs, latents))
    logits_of(model, inputs, latents).square().mean().backward()
    for block in model.decoder.cross.values():
        assert isinstance(block, CrossBlock)
        gradients = block.attention_gate.weight.grad, block.mlp_gate.weight.grad, block.out.weight.grad
        assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [False, False, True]


def test_same_config_same_weights() -> None:
    config: RunConfig = override(recipes.find("tiny"), ["model.vision.weights=random:0"])
    first, second = build_model(config), build_model(config)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    reseeded = build_model(override(config, ["train.seed=1"]))
    assert not torch.equal(first.decoder.embedding.weight, reseeded.decoder.embedding.weight)
    assert encoder_hash(first.vision) == encoder_hash(reseeded.vision)


@pytest.mark.parametrize(("recipe", "total"), [("video_30b", 30_202_772_625)])
def test_the_full_model_has_the_stated_size(recipe: str, total: int) -> None:
    with torch.device("meta"):
        model = VideoLM(recipes.find(recipe).model)
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 28_359_995_281
