"""The step: microbatches change nothing, the contrastive loss is exact, what is not finite changes nothing."""

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xgenvideo.config import RunConfig, override
from xgenvideo.data.batch import Batch
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.loader import Loader
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.objectives import contrastive_loss, next_token_loss
from xgenvideo.parallel.engine import Engine, build_engine
from xgenvideo.parallel.shards import Piece
from xgenvideo.parallel.visual import shown_frames
from xgenvideo.parallel.world import World
from xgenvideo.train.metrics import Metrics
from xgenvideo.train.optimizer import build_optimizer
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


def open_engine(config: RunConfig) -> Engine:
    """A float64 model with half-open gates."""
    engine = build_engine(override(config, ["train.precision=fp64"]), CPU)
    with torch.no_grad():
        for piece in engine.pieces:
            if piece.name.endswith("_gate.weight"):
                piece.local.fill_(0.5)
    return engine


def take_steps(config: RunConfig, batch: Batch, steps: int = 3) -> tuple[list[Metrics], VideoLM]:
    """A few steps on one batch."""
    engine = open_engine(config)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    loader = repeating(batch)
    return [training_step(config, engine, loader, optimizer, CPU, step) for step in range(steps)], engine.model


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
    engine = open_engine(config)
    model = engine.model
    latents = model.latents(engine.visual.encode(batch, shown_frames(batch)), batch.pts, batch.frame_mask)
    text = (batch.tokens, batch.positions, batch.documents)
    logits = model.logits(*text, latents, batch.sees_video)
    total, count = next_token_loss(logits, batch.targets)
    embeddings = model.video_embedding(latents), model.text_embedding(*text, batch.caption_end)
    weight = config.objective.contrastive_weight
    (total / count + weight * contrastive_loss(*embeddings, model.logit_scale, batch.caption_group)).backward()
    return {piece.name: cast(torch.Tensor, piece.local.grad) for piece in engine.pieces}


@pytest.mark.parametrize("pairs", [1, 4])
def test_the_gradient_is_that_of_one_ordinary_backward(
    run_config: RunConfig, batch: Batch, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(run_config, [f"layout.microbatch_pairs={pairs}", "objective.contrastive_weight=0.7"])
    expected = plain_gradients(config, batch)
    seen: dict[str, torch.Tensor] = {}

    def keep(pieces: list[Piece], limit: float, world: World) -> torch.Tensor:
        seen.update({piece.name: cast(torch.Tensor, piece.local.grad).clone() for piece in pieces})
        return torch.tensor(1.0)

    monkeypatch.setattr("xgenvideo.train.step.clip_gradients", keep)
    take_steps(config, batch, 1)
    assert seen.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(seen[name], gradient, rtol=0, atol=1e-12, msg=name)


def test_one_microbatch_runs_every_part_once_and_several_run_the_text_twice(
    run_config: RunConfig, batch: Batch
) -> None:
    def count(config: RunConfig) -> dict[str, int]:
        engine = open_engine(config)
        calls = {"vision": 0, "resampler": 0, "first": 0, "last": 0}
        decoder = engine.model.decoder
        layers = {"first": decoder.layers["0"], "last": decoder.layers[str(config.model.decoder.depth - 1)]}
        for name, module in {"vision": engine.model.vision, "resampler": engine.model.resampler, **layers}.items():

            def counted(module: torch.nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                calls[name] += 1

            module.register_forward_hook(counted)
        training_step(config, engine, repeating(batch), build_optimizer(engine.pieces, config.optimizer), CPU, 0)
        return calls

    assert count(run_config) == {"vision": 1, "resampler": 1, "first": 1, "last": 1}
    parts = override(run_config, ["layout.microbatch_pairs=1"])
    # The resampler runs again in its backward, the lower half of the decoder for the text embeddings.
    assert count(parts) == {"vision": 4, "resampler": 8, "first": 8, "last": 4}


@pytest.mark.parametrize("kept", ["selective", "full"])
def test_recomputing_changes_nothing_but_what_is_kept(run_config: RunConfig, batch: Batch, kept: str) -> None:
    def step(config: RunConfig) -> tuple[Metrics, int, int]:
        """A step, how often a block ran, and the bytes that autograd kept between forward and backward."""
        engine = open_engine(config)
        runs = 0

        def count(*ignored: Any) -> None:
            nonlocal runs
            runs += 1

        engine.model.decoder.layers["1"].register_forward_pre_hook(count)
        saved = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        optimizer = build_optimizer(engine.pieces, config.optimizer)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            metrics = training_step(config, engine, repeating(batch), optimizer, CPU, 0)
        return metrics, runs, saved

    plain, once, all_kept = step(run_config)
    again, twice, less_kept = step(override(run_config, [f"train.recompute={kept}"]))
    assert (once, twice) == (1, 2)
    assert less_kept < all_kept
    assert again.loss == plain.loss
    assert again.grad_norm == pytest.approx(plain.grad_norm, abs=1e-12)


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
        engine = build_engine(config, CPU)
        optimizer = build_optimizer(engine.pieces, config.optimizer)
        metrics = training_step(config, engine, repeating(batch), optimizer, CPU, 0)
        assert {piece.local.dtype for piece in engine.pieces} == {torch.float32}
        assert all(state["exp_avg"].dtype == torch.float32 for state in optimizer.state.values())
        return metrics

    full, half = first_loss("fp32"), first_loss("bf16")
    assert full.loss != half.loss
    assert half.loss == pytest.approx(full.loss, rel=0.02)
    assert half.grad_norm == pytest.approx(full.grad_norm, rel=0.1)


def test_a_step_that_is_not_finite_changes_nothing(run_config: RunConfig, batch: Batch) -> None:
    engine = build_engine(run_config, CPU)
    model, optimizer = engine.model, build_optimizer(engine.pieces, run_config.optimizer)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    broken = dataclasses.replace(batch, pts=batch.pts * float("nan"))
    assert not training_step(run_config, engine, repeating(broken), optimizer, CPU, 0).finite
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not any(state["step"] or state["exp_avg"].any() for state in optimizer.state.values())
    assert training_step(run_config, engine, repeating(batch), optimizer, CPU, 1).finite


def test_cut_batches_hold_every_pair_once(batch: Batch) -> None:
    parts = batch.split(3)
    assert [len(part) for part in parts] == [3, 1]
    assert sum((part.keys for part in parts), ()) == batch.keys
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert [part.position for part in parts] == [batch.position, batch.position + 3]


class Casts(TorchDispatchMode):
    """Counts how often a weight of the decoder is cast."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        decoder = (parameter for stage in engine.held for parameter in stage.parameters())
        self.weights, self.count = {id(parameter) for parameter in decoder}, 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run it."""
        self.count += func is torch.ops.aten._to_copy.default and id(args[0]) in self.weights
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_weights_are_cast_as_often_for_many_microbatches_as_for_few(
    run_config: RunConfig, batch: Batch, recompute: str
) -> None:
    counts = []
    for pairs in (2, 1):
        changes = ["train.precision=bf16", f"layout.microbatch_pairs={pairs}", f"train.recompute={recompute}"]
        config = override(run_config, changes)
        engine = build_engine(config, CPU)
        optimizer = build_optimizer(engine.pieces, config.optimizer)
        with Casts(engine) as casts:
            training_step(config, engine, repeating(batch), optimizer, CPU, 0)
        counts.append(casts.count)
    assert counts[0] == counts[1] > 0
