"""Groups, schedule, clipping and the clamp of the logit scale."""

import dataclasses
import math

import pytest
import torch

from xgenvideo.config import RunConfig
from xgenvideo.models.video_lm import build_model
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.shards import Piece
from xgenvideo.parallel.world import World
from xgenvideo.train.optimizer import (
    build_optimizer,
    clamp_logit_scale,
    clip_gradients,
    learning_rate,
    optimizer_tensors,
    set_learning_rate,
)

CPU = World(0, 1, torch.device("cpu"))


def pieces_of(config: RunConfig) -> list[Piece]:
    return build_engine(config, CPU).pieces


def test_learning_rate_warms_up_then_falls_to_its_floor(small_config: RunConfig) -> None:
    config = dataclasses.replace(small_config.optimizer, lr=1.0, warmup_fraction=0.1, min_lr_fraction=0.25)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == 1.0
    assert rates[54] == pytest.approx(0.625)
    assert rates[-1] == pytest.approx(0.25)
    assert all(later < earlier for earlier, later in zip(rates[9:], rates[10:], strict=False))


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 1), (0.9, 1), (0.5, 2), (0.02, 8)])
def test_learning_rate_of_short_runs_stays_in_range(small_config: RunConfig, warmup: float, steps: int) -> None:
    config = dataclasses.replace(small_config.optimizer, lr=1.0, warmup_fraction=warmup)
    assert all(0 < learning_rate(config, step, steps) <= 1 for step in range(steps))


def test_what_is_decayed(small_config: RunConfig) -> None:
    pieces = pieces_of(small_config)
    optimizer = build_optimizer(pieces, small_config.optimizer)
    names = {id(piece.local): piece.name for piece in pieces}
    decayed, plain, gates = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert {"decoder.embedding.weight", "decoder.head.weight", "video_projection.weight"} <= decayed
    assert {"logit_scale", "resampler.queries", "resampler.slots", "video_pool.query", "decoder.norm.weight"} <= plain
    assert not any("norm" in name or "bias" in name for name in decayed)
    assert all(name.endswith("_gate.weight") for name in gates)
    assert len(gates) == 2 * small_config.model.decoder.cross_blocks
    assert decayed | plain | gates == set(names.values())
    assert [group["weight_decay"] for group in optimizer.param_groups] == [small_config.optimizer.weight_decay, 0, 0]


def test_gates_have_their_own_learning_rate(small_config: RunConfig) -> None:
    config = dataclasses.replace(
        small_config, optimizer=dataclasses.replace(small_config.optimizer, lr=1e-3, gate_lr_scale=5.0)
    )
    optimizer = build_optimizer(pieces_of(config), config.optimizer)
    lr = set_learning_rate(optimizer, config, 7)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([lr, lr, 5 * lr])


def test_the_norm_is_that_of_all_gradients_together(small_config: RunConfig) -> None:
    pieces = pieces_of(small_config)
    count = sum(piece.local.numel() for piece in pieces)
    for piece in pieces:
        piece.local.grad = torch.full_like(piece.local, 2.0)
    assert float(clip_gradients(pieces, 1.0, CPU)) == pytest.approx(2 * math.sqrt(count), rel=1e-5)
    assert float(clip_gradients(pieces, 1.0, CPU)) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("value", "expected"), [(-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100))])
def test_the_logit_scale_is_clamped(small_config: RunConfig, value: float, expected: float) -> None:
    model = build_model(small_config)
    with torch.no_grad():
        model.logit_scale.fill_(value)
    clamp_logit_scale(model)
    assert float(model.logit_scale.detach()) == pytest.approx(expected)


def test_the_state_is_named_and_shares_its_memory(small_config: RunConfig) -> None:
    pieces = pieces_of(small_config)
    optimizer = build_optimizer(pieces, small_config.optimizer)
    tensors = optimizer_tensors(pieces, optimizer)
    assert len(tensors) == 3 * len(pieces)
    assert not any(tensor.any() for tensor in tensors.values())
    for piece in pieces:
        piece.local.grad = torch.ones_like(piece.local)
    optimizer.step()
    assert all(tensors[f"{piece.name}/step"] == 1 for piece in pieces)
    assert all(tensors[f"{piece.name}/exp_avg"].all() for piece in pieces)
