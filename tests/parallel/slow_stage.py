"""Steps of two pipeline ranks, the second of which sleeps in every forward; run by test_waiting.py."""

import json
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from parity import MadeUp, small

from xgenvideo.config import RunConfig
from xgenvideo.data.loader import Loader
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import lay_out
from xgenvideo.train.metrics import Meter, Peak
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.step import training_step


def rank_main(rank: int, config: RunConfig, store: str, sleep_seconds: float) -> None:
    """The first rank prints the waiting of both ranks and what the log would say."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    world = lay_out(config.layout, rank, 2, torch.device("cpu"))
    engine = build_engine(config, world)
    if rank == 1:
        engine.held[0].register_forward_pre_hook(lambda *ignored: time.sleep(sleep_seconds))
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    loader = cast(Loader, MadeUp(config, world.layout.share(world.pair_rank, config.train.global_batch_pairs)))
    meter = Meter(config, Peak(1e12, "a test"), world.size)
    for step in range(4):
        began = time.perf_counter()
        metrics = training_step(config, engine, loader, optimizer, world, step)
        meter.add(metrics, time.perf_counter() - began)
        if step == 0:  # one to settle, three measured
            meter.take(world)
    rates = meter.take(world)
    training_step(config, engine, loader, optimizer, world, 4)
    found: list[Any] = [None, None]
    dist.all_gather_object(found, {"waited": world.waiting.take(), "rates": rates})
    if rank == 0:
        print(json.dumps(found), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    changes = ["layout.pipeline=2", "train.global_batch_pairs=12", "layout.microbatch_pairs=3"]
    arguments = (small(changes), sys.argv[1], float(sys.argv[2]))
    torch.multiprocessing.start_processes(rank_main, arguments, nprocs=2, start_method="fork")
