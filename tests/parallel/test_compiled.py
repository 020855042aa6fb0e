"""Compiled blocks on many ranks: gradients of the plain ones, and what of them is made again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from xgenvideo.config import RunConfig, override
from xgenvideo.parallel.dry_run import pretended
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import World

SCRIPT = Path(__file__).with_name("compiled_gradients.py")


def has_compiler() -> bool:
    """Whether inductor finds a C++ compiler."""
    from torch._inductor import exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["tensor", "data"])
def test_compiled_blocks_have_the_gradients_of_plain_ones_on_two_ranks(tmp_path: Path, axis: str) -> None:
    if not has_compiler():
        pytest.skip("torch.compile for a CPU needs a C++ compiler")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "store"), f"layout.{axis}=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    for compared, differing in json.loads(done.stdout.splitlines()[-1]):
        assert compared > 60
        assert differing == []


def test_no_sum_over_ranks_is_under_way_when_the_blocks_begin(small_config: RunConfig) -> None:
    config = override(small_config, ["layout.tensor=2", "train.precision=fp32"])
    with pretended(config, 0, 2) as world:
        [stage] = build_engine(config, world).held
        assert isinstance(stage, FSDPModule)
        assert stage.embedding is not None
        stage.unshard()
        hidden = stage.embedding(torch.zeros((2, config.data.text_tokens), dtype=torch.int64))
    # torch.compile gives tensors of other classes no gradient.
    assert type(hidden) is Tensor
    assert hidden.requires_grad


@pytest.mark.filterwarnings("ignore")  # torch warns of itself
@pytest.mark.parametrize(("recompute", "compiled"), [("none", True), ("selective", False), ("full", True)])
def test_blocks_that_keep_their_products_are_not_compiled(
    small_config: RunConfig, recompute: str, compiled: bool
) -> None:
    config = override(small_config, ["train.compile=true", f"train.recompute={recompute}"])
    [stage] = build_engine(config, World(0, 1, torch.device("cpu"))).held
    assert {block._compiled_call_impl is not None for block in stage.blocks.values()} == {compiled}
