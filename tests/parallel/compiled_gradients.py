"""One of two ranks that compare the gradients of compiled and of plain blocks; run by test_compiled.py."""

import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from parity import MadeUp, open_gates, small

from xgenvideo.config import RunConfig, override
from xgenvideo.data.loader import Loader
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import World, lay_out
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.step import training_step


def gradients(config: RunConfig, world: World) -> dict[str, Tensor]:
    """The gradients of one step by name, not clipped."""
    engine = build_engine(config, world)
    open_gates(engine)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    optimizer.zero_grad = lambda set_to_none=True: None  # so that the step leaves its gradients
    share = world.layout.share(world.pair_rank, config.train.global_batch_pairs)
    training_step(config, engine, cast(Loader, MadeUp(config, share)), optimizer, world, 0)
    return {piece.name: piece.local.grad for piece in engine.pieces if piece.local.grad is not None}


def rank_main(rank: int, store: str, settings: list[str]) -> None:
    """Print the names whose gradients differ on any rank."""
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    plain = small(["train.precision=fp32", "optimizer.clip_norm=1e9", *settings])
    world = lay_out(plain.layout, rank, 2, torch.device("cpu"))
    expected, found = gradients(plain, world), gradients(override(plain, ["train.compile=true"]), world)
    assert expected.keys() == found.keys()
    differing = [
        name
        for name, gradient in expected.items()
        if float((found[name] - gradient).norm()) > 1e-4 * float(gradient.norm()) + 1e-7
    ]
    told: list[Any] = [None, None]
    dist.all_gather_object(told, (len(expected), differing))
    if rank == 0:
        print(json.dumps(told), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    arguments = (sys.argv[1], sys.argv[2:])
    torch.multiprocessing.start_processes(rank_main, arguments, nprocs=2, start_method="fork")
