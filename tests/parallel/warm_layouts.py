"""A decoder that starts from a checkpoint, trained a few steps in a layout; run by test_warm_layouts.py.

Arguments: the folder, the settings that fit it as one string, then layouts. Prints, as JSON by layout, the largest
differences of losses and of weights from one process.
"""

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

from parity import LAYOUTS, Curve, compare, rank_main, small, train

from xgenvideo.config import RunConfig, override
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


def main(folder: str, settings: str, layouts: list[str]) -> None:
    """See the top of the file."""
    torch.set_num_threads(1)
    changes = [f"model.decoder_from={folder}", "train.precision=fp64", *settings.split()]
    alone = train(small(changes), World(0, 1, torch.device("cpu")), STEPS)
    cold = train(small([*changes, "model.decoder_from="]), World(0, 1, torch.device("cpu")), STEPS)
    found = {"": compare(alone, cold)[:2]}
    for layout in layouts:
        config = override(small(changes), [f"layout.{change}" for change in LAYOUTS[layout]])
        found[layout] = compare(alone, in_layout(config))[:2]
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
