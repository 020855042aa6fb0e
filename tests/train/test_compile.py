"""Compiled decoder blocks: the loss and the gradients of the plain ones."""

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from xgenvideo.config import RunConfig, override
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.loader import Loader
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import World
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.step import training_step

CPU = World(0, 1, torch.device("cpu"))


def has_compiler() -> bool:
    """Whether inductor finds a C++ compiler."""
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False


def step(config: RunConfig, loader: Loader) -> tuple[float, dict[str, Tensor], int]:
    """The loss and the gradients (not clipped) of one step, and how many blocks are compiled."""
    engine = build_engine(config, CPU)
    with torch.no_grad():
        for piece in engine.pieces:
            if piece.name.endswith("_gate.weight"):
                piece.local.fill_(0.5)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    optimizer.zero_grad = lambda set_to_none=True: None  # so that the step leaves its gradients
    metrics = training_step(config, engine, loader, optimizer, CPU, 0)
    blocks = [block for stage in engine.held for block in stage.blocks.values()]
    compiled = sum(block._compiled_call_impl is not None for block in blocks)
    gradients = {piece.name: piece.local.grad for piece in engine.pieces if piece.local.grad is not None}
    return metrics.loss, gradients, compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch compiles with warnings of its own, some of which it means to hide
@pytest.mark.skipif(not has_compiler(), reason="torch.compile for a CPU needs a C++ compiler")
def test_compiled_blocks_have_the_loss_and_gradients_of_plain_ones(
    run_config: RunConfig,
    twins_dataset: Dataset,
    twins_tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)
    config = override(run_config, ["train.precision=fp32", "optimizer.clip_norm=1e9"])
    loader = Loader(twins_dataset, twins_tokenizer, config)
    batch = loader.next_batch()
    loader.close()
    again = cast(Loader, SimpleNamespace(next_batch=lambda: batch))
    loss, gradients, compiled = step(config, again)
    assert compiled == 0
    found_loss, found, compiled = step(override(config, ["train.compile=true"]), again)
    assert compiled == 6
    assert found_loss == pytest.approx(loss, rel=1e-5)
    assert found.keys() == gradients.keys()
    assert len(gradients) > 60
    for name, gradient in gradients.items():
        assert float((found[name] - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-7, name
