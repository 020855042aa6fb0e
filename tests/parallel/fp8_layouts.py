"""Losses of float8 training in some layouts, on CPUs; run by test_fp8.py. Prints them as JSON by layout."""

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from parity import LAYOUTS, Curve, rank_main, small, train

from xgenvideo.config import RunConfig, override
from xgenvideo.parallel import engine
from xgenvideo.parallel.world import World

STEPS = 2


def in_layout(config: RunConfig) -> Curve:
    """Train in as many processes as the layout has ranks."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        into = f"{folder}/curve.pt"
        ranks = [
            context.Process(target=rank_main, args=(rank, config, STEPS, f"{folder}/store", into), daemon=True)
            for rank in range(config.layout.world)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout=120)
        return Curve(**torch.load(into))


def main(layouts: list[str]) -> None:
    """See the top of the file."""
    torch.set_num_threads(1)
    engine.check_fp8 = lambda config, device: None  # a CPU is refused, for it gains nothing
    found = {}
    for fp8 in ("false", "true"):
        config = small(["train.precision=bf16", f"train.fp8={fp8}"])
        found[f"fp8={fp8}"] = train(config, World(0, 1, torch.device("cpu")), STEPS).losses
    for layout in layouts:
        named = [change if change.startswith("train.") else f"layout.{change}" for change in LAYOUTS[layout]]
        found[layout] = in_layout(override(config, named)).losses
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
