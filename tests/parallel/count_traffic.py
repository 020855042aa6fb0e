"""Count the collectives of one steady step on every rank of a layout; run by test_traffic.py with a free CPU each."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from parity import MadeUp, small

from xgenvideo.data.loader import Loader
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import lay_out
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.step import training_step


class Counting(TorchDispatchMode):
    """Counts c10d operations by name, and all operations that are dispatched by DTensor."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.seen[func.__name__.partition(".")[0]] += 1
        self.seen["of DTensor"] += DTensor in types
        return func(*args, **(kwargs or {}))


def main(rank: int, size: int, store: str, microbatch_pairs: int) -> None:
    """Two steps to settle, one counted."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    layout = ["layout.pipeline=2", "layout.data=2", f"layout.microbatch_pairs={microbatch_pairs}"]
    config = small(["train.precision=fp32", *layout])
    world = lay_out(config.layout, rank, size, torch.device("cpu"))
    engine = build_engine(config, world)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    loader = cast(Loader, MadeUp(config, world.layout.share(world.pair_rank, config.train.global_batch_pairs)))
    for step in range(2):
        training_step(config, engine, loader, optimizer, world, step)
    with Counting() as counting:
        training_step(config, engine, loader, optimizer, world, 2)
    blocks = [len(stage.blocks) for stage in engine.text.pipeline.stages]  # type: ignore[attr-defined]
    found: list[Any] = [None] * size
    dist.all_gather_object(found, {"blocks": sum(blocks), "seen": counting.seen})
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
