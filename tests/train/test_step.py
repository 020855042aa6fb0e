"""The step: microbatches change nothing, the contrastive loss is exact, what is not finite changes nothing."""

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from xgenvideo.config import RunConfig, override
from xgenvideo.data.batch import Batch
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.loader import Loader
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.models.video_lm import VideoLM, build_model
from xgenvideo.objectives import contrastive_loss, next_token_loss
from xgenvideo.parallel.world import World
from xgenvideo.train.metrics import Metrics
from xgenvideo.train.optimizer import build_optimizer, trained_parameters
from xgenvideo.train.passes import encode, microbatches
from xgenvideo.train.step import training_step

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture
def batch(run_config: RunConfig, twins_dataset: Dataset, twins_tokenizer: Tokenizer) -> Batch:
    """Four pairs whose texts differ in length."""
    loader = Loader(twins_dataset, twins_tokenizer, run_config)
    batch = loader.next_batch()
    loader.close()
    assert not batch.frame_mask.all(), "some clips are shorter than others"
    assert len({int(row) for row in (batch.targets >= 0).sum(dim=1)}) > 1
    return batch


def repeating(batch: Batch) -> Loader:
    """A loader of one batch."""
    return cast(Loader, SimpleNamespace(next_batch=lambda: batch))


def open_model(config: RunConfig) -> VideoLM:
    """A float64 model with half-open gates."""
    model = build_model(config).double().train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_gate.weight"):
                parameter.fill_(0.5)
    return model


def take_steps(config: RunConfig, batch: Batch, steps: int = 3) -> tuple[list[Metrics], VideoLM]:
    """A few steps on one batch."""
    model = open_model(config)
    optimizer = build_optimizer(model, config.optimizer)
    loader = repeating(batch)
    return [training_step(config, model, loader, optimizer, CPU, step) for step in range(steps)], model


@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("pairs", [1, 2])
def test_microbatches_give_the_losses_and_weights_of_the_whole_batch(
    run_config: RunConfig, batch: Batch, pairs: int, loss: str
) -> None:
    # AdamW divides by the gradient's own size: without this eps, a gradient of nearly zero would amplify its last bit.
    whole = override(run_config, [f"objective.contrastive={loss}", "optimizer.eps=1e-4"])
    expected, model = take_steps(whole, batch)
    found, other = take_steps(override(whole, [f"layout.microbatch_pairs={pairs}"]), batch)
    for one, two in zip(expected, found, strict=True):
        assert one.loss_next_token == pytest.approx(two.loss_next_token, abs=1e-12)
        assert one.loss_contrastive == pytest.approx(two.loss_contrastive, abs=1e-12)
        assert one.grad_norm == pytest.approx(two.grad_norm, abs=1e-12)
    for (name, weight), other_weight in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, other_weight, rtol=0, atol=1e-12, msg=name)


def plain_gradients(config: RunConfig, batch: Batch) -> dict[str, torch.Tensor]:
    """Gradients of both losses by one ordinary backward over the whole batch."""
    model = open_model(config)
    latents = model.latents(encode(model, batch, "fp32"), batch.pts, batch.frame_mask)
    text = (batch.tokens, batch.positions, batch.documents)
    logits = model.logits(*text, latents, batch.sees_video)
    total, count = next_token_loss(logits, batch.targets)
    embeddings = model.video_embedding(latents), model.text_embedding(*text, batch.caption_end)
    weight = config.objective.contrastive_weight
    (total / count + weight * contrastive_loss(*embeddings, model.logit_scale, batch.caption_group)).backward()
    return {name: cast(torch.Tensor, p.grad) for name, p in trained_parameters(model).items()}


@pytest.mark.parametrize("pairs", [1, 4])
def test_the_gradient_is_that_of_one_ordinary_backward(
    run_config: RunConfig, batch: Batch, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(run_config, [f"layout.microbatch_pairs={pairs}", "objective.contrastive_weight=0.7"])
    expected = plain_gradients(config, batch)
    seen: dict[str, torch.Tensor] = {}

    def keep(model: VideoLM, limit: float) -> torch.Tensor:
        seen.update({name: cast(torch.Tensor, p.grad).clone() for name, p in trained_parameters(model).items()})
        return torch.tensor(1.0)

    monkeypatch.setattr("xgenvideo.train.step.clip_gradients", keep)
    take_steps(config, batch, 1)
    assert seen.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, rtol=0, atol=1e-12, msg=name)


def test_one_microbatch_runs_every_part_once_and_several_run_the_text_twice(
    run_config: RunConfig, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(config: RunConfig) -> dict[str, int]:
        model = open_model(config)
        calls = {"encode_frames": 0, "lower": 0, "upper": 0, "latents": 0}

        def counted(owner: Any, name: str) -> None:
            inner = getattr(owner, name)

            def call(*arguments: Any) -> Any:
                calls[name] += 1
                return inner(*arguments)

            monkeypatch.setattr(owner, name, call)

        for owner, name in ((model, "encode_frames"), (model, "latents"), (model.decoder, "lower")):
            counted(owner, name)
        counted(model.decoder, "upper")
        training_step(config, model, repeating(batch), build_optimizer(model, config.optimizer), CPU, 0)
        return calls

    assert count(run_config) == {"encode_frames": 1, "lower": 1, "upper": 1, "latents": 1}
    parts = override(run_config, ["layout.microbatch_pairs=1"])
    # The resampler runs again in its backward, the lower half of the decoder for the text embeddings.
    assert count(parts) == {"encode_frames": 4, "lower": 8, "upper": 4, "latents": 8}


def test_microbatch_scope_is_another_loss(run_config: RunConfig, batch: Batch) -> None:
    parts = override(run_config, ["layout.microbatch_pairs=2"])
    wide, _ = take_steps(parts, batch, 1)
    narrow, _ = take_steps(override(parts, ["objective.contrastive_scope=microbatch"]), batch, 1)
    assert abs(wide[0].loss_contrastive - narrow[0].loss_contrastive) > 1e-3
    assert abs(wide[0].grad_norm - narrow[0].grad_norm) > 1e-6
    assert wide[0].loss_next_token == narrow[0].loss_next_token


def test_losses_fall(run_config: RunConfig, batch: Batch) -> None:
    metrics, model = take_steps(override(run_config, ["train.steps=15"]), batch, 15)
    assert metrics[-1].loss_next_token < 0.8 * metrics[0].loss_next_token
    assert metrics[-1].loss_contrastive < metrics[0].loss_contrastive
    assert any(abs(value - torch.tensor(0.5).tanh()) > 1e-3 for value in model.gates().values())


# Under autocast the norms of the cross-attention's queries and keys get bf16 rows and fp32 weights, which torch
# computes rightly, though not in its fused kernel.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("pairs", [2, 4])
def test_bf16_is_near_fp32_and_keeps_fp32_masters(run_config: RunConfig, batch: Batch, pairs: int) -> None:
    def first_loss(precision: str) -> Metrics:
        config = override(run_config, [f"train.precision={precision}", f"layout.microbatch_pairs={pairs}"])
        model = build_model(config).train()
        optimizer = build_optimizer(model, config.optimizer)
        metrics = training_step(config, model, repeating(batch), optimizer, CPU, 0)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert all(state["exp_avg"].dtype == torch.float32 for state in optimizer.state.values())
        return metrics

    full, half = first_loss("fp32"), first_loss("bf16")
    assert full.loss != half.loss
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert half.grad_norm == pytest.approx(full.grad_norm, rel=0.1)


def test_a_step_that_is_not_finite_changes_nothing(run_config: RunConfig, batch: Batch) -> None:
    model = build_model(run_config)
    optimizer = build_optimizer(model, run_config.optimizer)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    broken = dataclasses.replace(batch, pts=batch.pts * float("nan"))
    assert not training_step(run_config, model, repeating(broken), optimizer, CPU, 0).finite
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not optimizer.state
    assert training_step(run_config, model, repeating(batch), optimizer, CPU, 1).finite


def test_cut_batches_hold_every_pair_once(batch: Batch) -> None:
    parts = microbatches(batch, 3)
    assert [len(part) for part in parts] == [3, 1]
    assert sum((part.keys for part in parts), ()) == batch.keys
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert [part.position for part in parts] == [batch.position, batch.position + 3]
