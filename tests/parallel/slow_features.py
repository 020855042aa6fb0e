"""Ranks that make a feature cache, the first of them slowly; run by test_features.py under torchrun."""

import datetime
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from xgenvideo import recipes
from xgenvideo.config import LayoutConfig, override
from xgenvideo.data.dataset import open_dataset
from xgenvideo.parallel.engine import Engine
from xgenvideo.parallel.world import join_world, leave_world
from xgenvideo.train.loop import build_features

SECONDS_A_FRAME = 0.06


def main(folder: Path, timeout_seconds: float) -> None:
    """Make the features of the dataset in `folder`; no collective may wait longer than `timeout_seconds`.

    The first rank prints how many frames each rank has encoded, and how long it took.
    """
    world = join_world(LayoutConfig(data=2))
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=timeout_seconds))
    encoded = torch.zeros(world.size, dtype=torch.int64)

    def encode(frames: Tensor) -> Tensor:
        encoded[world.rank] += len(frames)
        time.sleep(SECONDS_A_FRAME * len(frames) * (world.rank == 0))
        return frames.float().mean(dim=(-1, -2))[:, None]

    engine: Any = SimpleNamespace(encoder_hash="hash", model=SimpleNamespace(encode_frames=encode))
    config = override(recipes.find("tiny"), [f"train.startup_timeout_seconds={timeout_seconds}"])
    began, dataset = time.monotonic(), open_dataset(folder)
    cache = build_features(config, dataset, cast(Engine, engine), world, quiet=True)
    assert all(len(cache.read(row.key)) == row.frames for row in dataset.rows("train"))
    counts = world.sum(encoded).tolist()
    if world.rank == 0:
        print(json.dumps({"encoded": counts, "seconds": time.monotonic() - began}), flush=True)
    leave_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
