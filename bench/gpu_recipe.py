"""The recipe `one_gpu` end to end on one device: generated clips through the loader, the whole step, the optimizer.

Part of bench/gpu.py. Steps with batches from the loader are followed by as many with a batch that is kept, in the same
process: what the second are faster by is what the data costs.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch
from data import clips_of, write_clips

from xgenvideo import recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.data.batch import Batch
from xgenvideo.data.generate import generate
from xgenvideo.data.loader import Loader
from xgenvideo.data.text import texts
from xgenvideo.data.tokenizer import train_tokenizer
from xgenvideo.parallel.world import World
from xgenvideo.plan.flops import training_flops
from xgenvideo.plan.memory import memory
from xgenvideo.train.loop import build, machine_settings
from xgenvideo.train.metrics import Metrics
from xgenvideo.train.resume import Training
from xgenvideo.train.step import training_step

CLIPS = 160
SMALL = (
    *("model.vision.width=64", "model.vision.heads=4", "model.vision.depth=2", "model.vision.mlp=128"),
    *("model.vision.image_size=28", "model.resampler.width=64", "model.resampler.heads=4", "model.resampler.depth=1"),
    *("model.resampler.queries=8", "model.decoder.width=64", "model.decoder.depth=4", "model.decoder.heads=4"),
    *("model.decoder.kv_heads=2", "model.decoder.head_size=16", "model.decoder.mlp=128", "model.decoder.vocab=512"),
    *("model.decoder.cross_blocks=2", "model.embedding=32", "data.frames=4", "data.text_tokens=32"),
    *("train.global_batch_pairs=4", "layout.microbatch_pairs=2"),
)


@dataclass(frozen=True)
class Steps:
    """Median seconds of a step and of its wait for a batch; full-square FLOPs and text tokens of the mean step; bytes
    by the planner.
    """

    seconds: float
    waited: float
    flops: float
    tokens: float
    planned_bytes: float


class Timed:
    """Batches of a loader, and the seconds that each was waited for."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.waited, self.last = loader, list[float](), cast(Batch, None)

    def next_batch(self) -> Batch:
        """As Loader.next_batch."""
        began = time.perf_counter()
        self.last = self.loader.next_batch()
        self.waited.append(time.perf_counter() - began)
        return self.last


def recipe_config(folder: Path, clips: int, settings: tuple[str, ...]) -> RunConfig:
    """The recipe on a dataset of generated clips that is made in `folder`, its encoder's weights random."""
    generate(folder / "clips", clips, 0, 0.0)
    dataset = write_clips(clips_of(folder / "clips"), folder / "dataset")
    shared = (f"data.shards={dataset.folder}", "model.vision.weights=random:0")
    config = override(recipes.find("one_gpu"), [*shared, *settings])
    # Generated captions have few words: their tokenizer is smaller than the vocabulary, which costs the same.
    train_tokenizer(texts(dataset.rows("train")), min(1024, config.model.decoder.vocab)).save(
        dataset.folder / "tokenizer.json"
    )
    return config


def end_to_end(device: torch.device, settings: tuple[str, ...], warm_up: int, rounds: int) -> dict[str, Steps]:
    """Steps of the recipe, with batches from the loader and with one that is kept."""
    with tempfile.TemporaryDirectory() as folder:
        config = recipe_config(Path(folder), CLIPS if rounds > 3 else CLIPS // 10, settings)
        with machine_settings(config):
            training = build(config, World(0, 1, device), quiet=True)
            timed = Timed(training.loader)
            found = {"batches from the loader": take(training, timed, warm_up, rounds)}
            kept = timed.last
            found["one kept batch"] = take(training, SimpleNamespace(next_batch=lambda: kept), 1, rounds)
            training.loader.close()
    return found


def take(training: Training, batches: Timed | SimpleNamespace, warm_up: int, rounds: int) -> Steps:
    """Some steps; each ends when its figures have come from the device."""
    config, taken, done = training.config, list[float](), list[Metrics]()
    for _ in range(warm_up + rounds):
        began = time.perf_counter()
        loader = cast(Loader, batches)
        done.append(training_step(config, training.engine, loader, training.optimizer, training.world, training.step))
        taken.append(time.perf_counter() - began)
        training.step += 1
    counted = done[warm_up:]
    flops = [
        training_flops(config, one.pairs, one.text_tokens, one.frames, one.encoded_frames).total_quadratic
        for one in counted
    ]
    return Steps(
        seconds=statistics.median(taken[warm_up:]),
        waited=statistics.median(batches.waited[warm_up:]) if isinstance(batches, Timed) else 0.0,
        flops=statistics.mean(flops),
        tokens=statistics.mean(one.tokens for one in counted),
        planned_bytes=memory(config, config.data.text_tokens)[0].counted,
    )
