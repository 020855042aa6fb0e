"""Float8 products: what they compute, on a CPU, where they may run, and that layouts agree. No GPU is used here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from xgenvideo import recipes
from xgenvideo.config import override
from xgenvideo.errors import ConfigError
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.fp8 import GRADIENTS, VALUES, Float8Linear, check_fp8, narrowed
from xgenvideo.parallel.world import World

CPU = World(0, 1, torch.device("cpu"))
SCRIPT = Path(__file__).parent / "fp8_layouts.py"


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """What float8 makes of a tensor."""
    narrow, factor = narrowed(tensor, dtype)
    return narrow.float() * factor


@pytest.mark.parametrize("rows", [16, 21])
def test_products_are_those_of_operands_rounded_to_float8(rows: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias=False)
    layer.__class__ = Float8Linear
    x, gradient = torch.randn(3, rows, 64, requires_grad=True), torch.randn(3, rows, 48)
    made = layer(x)
    assert made.dtype == torch.bfloat16
    made.backward(gradient.bfloat16())
    weight, inputs = rounded(layer.weight, VALUES), rounded(x, VALUES)
    outgoing = rounded(gradient.bfloat16(), GRADIENTS)
    torch.testing.assert_close(made.float(), inputs @ weight.T, rtol=1e-2, atol=1e-2)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, outgoing @ weight, rtol=1e-2, atol=1e-2)
    assert layer.weight.grad is not None
    expected = outgoing.flatten(0, 1).T @ inputs.flatten(0, 1)
    torch.testing.assert_close(layer.weight.grad, expected, rtol=1e-4, atol=1e-4)


def test_values_and_gradients_use_the_whole_range() -> None:
    for dtype in (VALUES, GRADIENTS):
        narrow, factor = narrowed(torch.tensor([[1e-3, -2e-3]]), dtype)
        assert narrow.float().abs().max() == torch.finfo(dtype).max
        assert float((narrow.float() * factor)[0, 1]) == pytest.approx(-2e-3)
        zeros, _ = narrowed(torch.zeros(2, 2), dtype)
        assert not zeros.float().any()


def test_a_machine_without_float8_units_is_refused() -> None:
    config = override(recipes.find("tiny"), ["train.precision=bf16", "train.fp8=true"])
    with pytest.raises(ConfigError, match=r"compute capability 8\.9 or more"):
        build_engine(config, CPU)
    with pytest.raises(ConfigError, match=r"train\.precision = 'fp32'"):
        override(config, ["train.precision=fp32"])
    with pytest.raises(ConfigError, match=r"train\.fp8 = True: does not go with layout\.schedule = zbv"):
        override(config, ["layout.schedule=zbv", "layout.virtual_stages=2", "layout.pipeline=2"])


@pytest.mark.parametrize(("capability", "refused"), [((8, 0), True), ((8, 9), False), ((9, 0), False)])
def test_the_capability_decides(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: bool) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    config, device = recipes.find("video_30b"), torch.device("cuda", 0)
    if refused:
        with pytest.raises(ConfigError, match=r"not some GPU, 8\.0"):
            check_fp8(config, device)
        return
    check_fp8(config, device)
    odd = override(config, ["model.decoder.mlp=20996"])
    with pytest.raises(ConfigError, match=r"needs model\.decoder\.mlp on a rank to be a multiple of 16, not 5249"):
        check_fp8(odd, device)


def test_layouts_agree_to_the_precision_of_float8() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "TP2", "PP2 recompute all"],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    plain, alone = found.pop("fp8=false"), found.pop("fp8=true")
    assert alone != plain
    assert len(found) == 2
    for losses in (plain, *found.values()):
        assert losses[0] == pytest.approx(alone[0], rel=0.02)
        assert losses[1] == pytest.approx(alone[1], rel=0.02)
