"""Every layout against one process: the same losses and weights, step by step, with real ranks over gloo.

Run: make parity. Writes bench/results/parity.json and prints the table. Each row trains the same small model on the
same batches in another layout: captions of unequal length, padding, gradient accumulation, clipping, both losses.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from fair import RESULTS, write
from torch import Tensor
from torch.distributed.tensor import DTensor

from xgenvideo import recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.data.batch import Batch
from xgenvideo.data.loader import Loader
from xgenvideo.parallel.engine import Engine, build_engine
from xgenvideo.parallel.layout import check_layout
from xgenvideo.parallel.world import World, lay_out
from xgenvideo.train.heldout import losses
from xgenvideo.train.optimizer import build_optimizer, model_tensors
from xgenvideo.train.step import training_step

STEPS, PAIRS = 10, 24
TOLERANCE = {"fp64": (1e-12, 1e-11), "fp32": (1e-5, 1e-4)}
LAYOUTS: dict[str, list[str]] = {
    "DP2": ["data=2"],
    "DP2 replicated": ["data=2", "data_parallel=replicate"],
    "TP2": ["tensor=2"],
    "PP2 GPipe": ["pipeline=2", "schedule=gpipe"],
    "PP2": ["pipeline=2"],
    "PP2 interleaved x2": ["pipeline=2", "virtual_stages=2", "schedule=interleaved_1f1b"],
    "PP2 zero-bubble x2": ["pipeline=2", "virtual_stages=2", "schedule=zero_bubble"],
    "PP2 ZBV": ["pipeline=2", "virtual_stages=2", "schedule=zbv"],
    "PP2 recompute all": ["pipeline=2", "train.recompute=full"],
    "TP2 recompute some": ["tensor=2", "train.recompute=selective"],
    "PP4": ["pipeline=4"],
    "TP2xPP2": ["tensor=2", "pipeline=2"],
    "PP2xDP2": ["pipeline=2", "data=2"],
    "TP2xPP2xDP2": ["tensor=2", "pipeline=2", "data=2"],
    "PP4xDP2": ["pipeline=4", "data=2"],
}


@dataclass(frozen=True)
class Curve:
    """What one run of some steps gave: (total, next token, contrastive) a step, and the trained weights at its end.

    `read`: (next token, contrastive) of the first batch and the last by the forward passes that held-out pairs take.
    """

    losses: list[tuple[float, float, float]]
    read: list[tuple[float, float]]
    norms: list[float]
    weights: dict[str, Tensor]


def small(changes: Iterable[str] = ()) -> RunConfig:
    """The tiny recipe, smaller: 8 layers of width 32, four of them behind a cross block."""
    return override(
        recipes.find("tiny"),
        [
            *("model.vision.width=32", "model.vision.depth=1", "model.vision.heads=2", "model.vision.mlp=32"),
            *("model.vision.patch=8", "model.vision.image_size=16", "model.vision.weights=random:0"),
            *("model.resampler.queries=4", "model.resampler.width=32", "model.resampler.depth=1"),
            *("model.decoder.width=32", "model.decoder.depth=8", "model.decoder.heads=4", "model.decoder.kv_heads=2"),
            *("model.decoder.head_size=8", "model.decoder.mlp=48", "model.decoder.vocab=64"),
            *("model.decoder.cross_blocks=4", "model.embedding=16", "data.text_tokens=16", "data.frames=8"),
            *(f"train.global_batch_pairs={PAIRS}", "layout.microbatch_pairs=3", f"train.steps={STEPS}"),
            # AdamW divides by the gradient's own size: eps keeps gradients of nearly zero from amplifying rounding.
            *("optimizer.clip_norm=0.5", "optimizer.lr=1e-3", "optimizer.eps=1e-4", "optimizer.warmup_fraction=0.2"),
            *changes,
        ],
    )


class MadeUp:
    """A loader of made-up pairs, each a pure function of its place in the order; frames and captions vary in length."""

    def __init__(self, config: RunConfig, share: range) -> None:
        self.config, self.share, self.consumed = config, share, 0

    def next_batch(self) -> Batch:
        """This rank's share of the next global batch."""
        places = [self.consumed + place for place in self.share]
        self.consumed += self.config.train.global_batch_pairs
        columns = [self._pair(place) for place in places]
        stacked = {name: torch.stack([pair[name] for pair in columns]) for name in columns[0]}
        keys = tuple(str(place) for place in places)
        return Batch(**cast(Any, stacked), features=None, keys=keys, position=places[0])

    def _pair(self, place: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(place)
        data, vision = self.config.data, self.config.model.vision
        length, frames = data.text_tokens - 1 - place * 5 % 9, 1 + place * 3 % data.frames
        shown = torch.arange(data.frames) < frames
        pixels = torch.randint(0, 256, (data.frames, 3, vision.image_size, vision.image_size), generator=generator)
        real = torch.arange(data.text_tokens) < length
        tokens = torch.randint(3, self.config.model.decoder.vocab, (data.text_tokens,), generator=generator) * real
        end = length // 2
        return {
            "frames": (pixels * shown[:, None, None, None]).to(torch.uint8),
            "pts": torch.arange(data.frames) / 2 * shown,
            "frame_mask": shown,
            "tokens": tokens,
            "targets": torch.where(real, tokens.roll(-1), -100),
            "documents": torch.where(real, (torch.arange(data.text_tokens) > end).long(), -1),
            "positions": torch.arange(data.text_tokens),
            "caption_end": torch.tensor(end),
            "sees_video": real & (torch.arange(data.text_tokens) != 2),
            "caption_group": torch.tensor(place % 11),
        }


def train(config: RunConfig, world: World, steps: int) -> Curve:
    """Some steps of this rank; the weights come back whole on every rank."""
    engine = build_engine(config, world)
    open_gates(engine)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    share = world.layout.share(world.pair_rank, config.train.global_batch_pairs)
    loader = cast(Loader, MadeUp(config, share))
    rows, read = [], []
    for step in range(steps):
        if step in (0, steps - 1):
            ahead = MadeUp(config, share)
            ahead.consumed = step * config.train.global_batch_pairs
            total, predicted, contrastive = losses(config, engine, ahead.next_batch(), world)
            read.append((float(total / predicted), float(contrastive)))
            engine.rest()
        rows.append(training_step(config, engine, loader, optimizer, world, step))
    learnt = [(row.loss, row.loss_next_token, row.loss_contrastive) for row in rows]
    return Curve(learnt, read, [row.grad_norm for row in rows], whole_weights(engine, world))


@torch.no_grad()
def open_gates(engine: Engine) -> None:
    """Half-open gates from the start, so that every path carries gradient."""
    for piece in engine.pieces:
        if piece.name.endswith("_gate.weight") and piece.local.numel():
            piece.local.fill_(0.5)


def whole_weights(engine: Engine, world: World) -> dict[str, Tensor]:
    """Every trained weight of the model, whole, whatever rank holds it."""
    own = {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in model_tensors(engine.pieces).items()
    }
    if world.size == 1:
        return own
    found: list[dict[str, Tensor]] = [{} for _ in range(world.size)]
    dist.all_gather_object(found, own)
    return {name: tensor for part in reversed(found) for name, tensor in part.items()}


def rank_main(rank: int, config: RunConfig, steps: int, store: str, into: str) -> None:
    """One rank of a layout, in a process of its own."""
    torch.set_num_threads(1)
    size = config.layout.world
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
        check_layout(config, size)
        world = lay_out(config.layout, rank, size, torch.device("cpu"))
        curve = train(config, world, steps)
        if rank == 0:
            torch.save(curve.__dict__, into)
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # The other ranks wait for this one inside a collective: end at once, they are ended by their parent.
        import os

        os._exit(1)


def run(changes: Iterable[str], precision: str, steps: int = STEPS) -> Curve:
    """Train in a layout, in as many processes as it has ranks. Raises RuntimeError when one of them fails."""
    named = (change if change.startswith("train.") else f"layout.{change}" for change in changes)
    config = small([f"train.precision={precision}", *named])
    if config.layout.world == 1:
        return train(config, World(0, 1, torch.device("cpu")), steps)
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        into = f"{folder}/curve.pt"
        ranks = [
            context.Process(target=rank_main, args=(rank, config, steps, f"{folder}/store", into), daemon=True)
            for rank in range(config.layout.world)
        ]
        for process in ranks:
            process.start()
        try:
            while any(process.is_alive() for process in ranks):
                if any(process.exitcode for process in ranks):
                    break
                time.sleep(0.02)
            if any(process.exitcode for process in ranks):
                raise RuntimeError(f"{changes}: a rank failed")
        finally:
            for process in ranks:
                process.kill()
                process.join()
        return Curve(**torch.load(into))


def compare(one: Curve, other: Curve) -> tuple[float, float, str]:
    """Largest difference of a loss, largest relative L2 difference of a weight, and which weight that is."""
    expected = [*one.losses, one.losses[0][1:], one.losses[-1][1:]]
    found = [*other.losses, *other.read]
    worst_loss = max(abs(a - b) for pair in zip(expected, found, strict=True) for a, b in zip(*pair, strict=True))
    assert one.weights.keys() == other.weights.keys()
    by_weight = {
        name: float((other.weights[name] - weight).norm() / weight.norm().clamp(min=1e-30))
        for name, weight in one.weights.items()
    }
    worst = max(by_weight, key=lambda name: by_weight[name])
    return worst_loss, by_weight[worst], worst


def main() -> None:
    """Run the asked layouts in the asked precisions, print the table, write the results; exit 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layouts", nargs="*", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--precisions", nargs="*", default=list(TOLERANCE))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS / "parity.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for precision in asked.precisions:
        reference = run([], precision, asked.steps)
        for name in asked.layouts:
            began = time.perf_counter()
            loss, weight, worst = compare(reference, run(LAYOUTS[name], precision, asked.steps))
            limits = TOLERANCE[precision]
            rows.append(
                {
                    "layout": name,
                    "dtype": {"fp64": "float64", "fp32": "float32"}[precision],
                    "steps": asked.steps,
                    "max_loss_difference": loss,
                    "max_weight_difference": weight,
                    "worst_weight": worst,
                    "seconds": round(time.perf_counter() - began, 2),
                    "held": loss <= limits[0] and weight <= limits[1],
                }
            )
            told = "held" if rows[-1]["held"] else f"NOT HELD (limits {limits[0]:g}, {limits[1]:g}; {worst})"
            print(f"{name:20} {precision}  loss {loss:8.1e}  weights {weight:8.1e}  {told}", flush=True)
    write(asked.out, {"rows": rows})
    if not all(row["held"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
