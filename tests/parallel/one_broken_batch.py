"""Four steps on four ranks; on one of them a batch and later a loss are not numbers. Run by test_not_finite.py."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from parity import LAYOUTS, MadeUp, open_gates, small

from xgenvideo.config import RunConfig
from xgenvideo.data.batch import Batch
from xgenvideo.data.loader import Loader
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import lay_out
from xgenvideo.train import step as step_of_the_trainer
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.passes import Contrast, contrast
from xgenvideo.train.step import training_step

BROKEN_RANK, BROKEN_STEP, LAST_STEP = 1, 1, 3


class Broken(MadeUp):
    """Made-up pairs; the times of one batch are not numbers."""

    def next_batch(self) -> Batch:
        batch = super().next_batch()
        broken = self.consumed == (BROKEN_STEP + 1) * self.config.train.global_batch_pairs
        return replace(batch, pts=batch.pts * torch.nan) if broken else batch


def miscounted(*arguments: Any) -> Contrast:
    """The contrastive loss of a rank whose arithmetic fails, when its gradients are right."""
    right = contrast(*arguments)
    return replace(right, loss=right.loss * torch.nan)


def rank_main(rank: int, config: RunConfig, store: str) -> None:
    """One rank; the first prints for every rank and step whether it was finite and whether the weights moved."""
    torch.set_num_threads(1)
    size = config.layout.world
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    world = lay_out(config.layout, rank, size, torch.device("cpu"))
    engine = build_engine(config, world)
    open_gates(engine)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    share = world.layout.share(world.pair_rank, config.train.global_batch_pairs)
    loader = cast(Loader, (Broken if rank == BROKEN_RANK else MadeUp)(config, share))
    rows = []
    for step in range(4):
        if rank == BROKEN_RANK and step == LAST_STEP:
            step_of_the_trainer.contrast = miscounted  # type: ignore[attr-defined]
        before = [piece.local.detach().clone() for piece in engine.pieces]
        finite = training_step(config, engine, loader, optimizer, world, step).finite
        pairs = zip(before, engine.pieces, strict=True)
        moved = [not torch.equal(old, piece.local) for old, piece in pairs]
        counted = {float(state["step"]) for state in optimizer.state.values()}
        rows.append({"finite": finite, "moved": any(moved), "counted": sorted(counted)})
    found: list[Any] = [None] * size
    dist.all_gather_object(found, rows)
    if rank == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    small_config = small(["train.global_batch_pairs=12", *(f"layout.{change}" for change in LAYOUTS["PP2xDP2"])])
    torch.multiprocessing.start_processes(rank_main, (small_config, sys.argv[1]), nprocs=4, start_method="fork")
