"""What HFU counts is what torch counts in a real step."""

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from xgenvideo.config import RunConfig, override
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.loader import Loader
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import World
from xgenvideo.plan.flops import training_flops
from xgenvideo.train.hardware import extra_flops
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.step import training_step

CPU = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["layout.microbatch_pairs=2"],
        ["layout.microbatch_pairs=1", "train.recompute=full"],
        ["layout.microbatch_pairs=2", "train.recompute=selective"],
        ["train.recompute=full"],
        ["layout.microbatch_pairs=1", "train.recompute_budget_gib=0.0008"],
        ["layout.microbatch_pairs=1", "objective.contrastive_scope=microbatch"],
    ],
)
def test_the_flops_of_a_step_are_those_torch_counts(
    run_config: RunConfig, twins_dataset: Dataset, twins_tokenizer: Tokenizer, changes: list[str]
) -> None:
    config = override(run_config, ["train.precision=fp32", *changes])
    loader = Loader(twins_dataset, twins_tokenizer, config)
    batch = loader.next_batch()
    loader.close()
    engine = build_engine(config, CPU)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    again = cast(Loader, SimpleNamespace(next_batch=lambda: batch))
    # The fused backward's count depends on the kernel; the plain one's is what the formula says.
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        step = training_step(config, engine, again, optimizer, CPU, 0)
    model = training_flops(config, step.pairs, step.text_tokens, step.frames, step.encoded_frames)
    extra = extra_flops(config, step.text_tokens, step.frames)
    assert counted.get_total_flops() == model.total_quadratic + extra
    assert extra > 0
