"""The encoder in the first pipeline stage against the encoder over all ranks: four pipeline ranks, equal total work.

Run: make bench-placement. Steps of the two placements alternate in the same processes, on the same batches; their
losses must agree. The four ranks may share fewer cores, so two figures are given for each placement: the wall time on
this machine, and the time with a core for each rank, worked out from the processor seconds of every piece of work, put
one after another as the step needs them (messages take no time in it). Ranks wait for ranks, so no round is refused for
waiting. Beside them is the planner's simulation of the layout of 30.2 B parameters. Writes
bench/results/placement.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from fair import RESULTS, write
from fair import quartiles as ratios_of
from parity import MadeUp, small
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from xgenvideo import recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.data.batch import Batch
from xgenvideo.data.loader import Loader
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.layout import Layout
from xgenvideo.parallel.phases import Phases
from xgenvideo.parallel.visual import Video, VisualWorld
from xgenvideo.parallel.waiting import Waiting
from xgenvideo.parallel.world import lay_out
from xgenvideo.plan.flops import BACKWARD_AND_FORWARD, frame_flops, pair_forward
from xgenvideo.plan.report import machine_of
from xgenvideo.plan.schedule import BACKWARD, FORWARD, TEXT, Task, orders
from xgenvideo.plan.simulate import simulate
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.step import training_step

RANKS, ROUNDS = 4, 10
EVERYWHERE, FIRST = "all_ranks", "first_stage"
PLANNED = {EVERYWHERE: "all_ranks", FIRST: "stage_0"}  # their names in the planner
LOSS_TOLERANCE = 1e-5  # float32, as in parity.py


def heavy() -> RunConfig:
    """Four pipeline stages and an encoder that costs about five times the work of one, as in the 30.2 B run."""
    return small(
        [
            *("model.vision.width=256", "model.vision.depth=16", "model.vision.heads=4", "model.vision.mlp=1024"),
            *("model.vision.image_size=32", "model.decoder.width=256", "model.decoder.head_size=64"),
            *("model.decoder.mlp=512", "model.decoder.vocab=512", "data.text_tokens=32", "data.frames=4"),
            *("train.precision=fp32", f"layout.pipeline={RANKS}"),
            # Weights stay as they are, so that both placements compute the same in every round.
            "optimizer.lr=1e-12",
        ]
    )


def encoder_over_stage(config: RunConfig) -> float:
    """The encoder's FLOPs for a pair over those of the mean pipeline stage, forward and backward."""
    pair, decoder = pair_forward(config.model, config.data.text_tokens, config.data.frames), config.model.decoder
    blocks = decoder.depth * pair.self_block_causal + decoder.cross_blocks * pair.cross_block + pair.head
    stage = BACKWARD_AND_FORWARD * blocks / config.layout.pipeline
    return config.data.frames * frame_flops(config.model.vision) / stage


@dataclass(frozen=True)
class FirstStage(Layout):
    """The layout whose first pipeline stage encodes and resamples all videos; one replica, one tensor rank."""

    def share(self, pair_rank: int, pairs: int) -> range:
        """The pairs of a rank: none but on the first stage."""
        return range(0) if pair_rank else range(pairs)


class AllFrames(MadeUp):
    """The same made-up pairs at every step, none of whose frames is padding: each is the same work."""

    def next_batch(self) -> Batch:
        """The pairs of this rank's share, if any."""
        pairs = MadeUp(self.config, self.share or range(1)).next_batch()
        if self.share:
            return replace(pairs, frame_mask=torch.ones_like(pairs.frame_mask))
        none = {name: part[:0] for name, part in vars(pairs).items() if isinstance(part, Tensor)}
        return replace(pairs, **none, keys=())  # type: ignore[arg-type]


class AnyPairs(VisualWorld):
    """The visual world of a rank that may have no pairs: it still takes part in gathering the trunk's weights."""

    def look(self, batch: Batch, phases: Phases) -> Video:
        """As VisualWorld.look."""
        if len(batch):
            return super().look(batch, phases)
        phases.enter("resample")
        vision = self.vision.config
        none = torch.zeros((0, batch.pts.shape[1], vision.patches, vision.width), dtype=self.dtype)
        return Video(*self._resample(batch, none, once=True))


class ProcessorPhases(Phases):
    """Processor seconds of this rank's main thread by phase, beside the wall seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.spent: dict[str, float] = defaultdict(float)
        self._mark = time.thread_time()

    def enter(self, name: str) -> None:
        """As Phases.enter."""
        now = time.thread_time()
        self.spent[self.name] += now - self._mark
        self._mark = now
        super().enter(name)


class ProcessorWaiting(Waiting):
    """Processor seconds of each piece of work in its order: a list for the text pass, then one for the schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[list[float]] = []

    @contextmanager
    def _span(self, sign: float) -> Iterator[None]:
        if sign > 0:
            self.pieces.append([])
            yield
            return
        begun = time.thread_time()
        yield
        self.pieces[-1].append(time.thread_time() - begun)


@dataclass(frozen=True)
class Spent:
    """One rank's step: losses, wall seconds, processor seconds by phase, by text-only forward and by task."""

    losses: tuple[float, float]
    wall: float
    phases: dict[str, float]
    text: list[float]
    tasks: list[float]


def rank_main(rank: int, config: RunConfig, rounds: int, folder: str) -> None:
    """One rank: a step of each placement to settle, then `rounds` of each in turn; what they took goes into a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    waiting = ProcessorWaiting()
    world = replace(lay_out(config.layout, rank, RANKS, torch.device("cpu")), waiting=waiting)
    engine = build_engine(config, world)
    visual = engine.visual
    engine.visual = AnyPairs(visual.vision, visual.trunk, visual.pairs, visual.dtype, visual.autocast)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    layouts = {EVERYWHERE: world.layout, FIRST: FirstStage(RANKS, 1, 1)}
    found: dict[str, list[Spent]] = {name: [] for name in layouts}
    for number in range(rounds + 1):
        for name, layout in layouts.items():
            waiting.pieces.clear()
            placed = replace(world, layout=layout, phases=ProcessorPhases())
            share = layout.share(world.pair_rank, config.train.global_batch_pairs)
            world.wait()
            began = time.perf_counter()
            step = training_step(config, engine, cast(Loader, AllFrames(config, share)), optimizer, placed, number)
            wall, phases = time.perf_counter() - began, cast(ProcessorPhases, placed.phases)
            losses = step.loss_next_token, step.loss_contrastive
            found[name].append(Spent(losses, wall, dict(phases.spent), *waiting.pieces))
    rows = {name: [asdict(spent) for spent in steps[1:]] for name, steps in found.items()}
    Path(folder, f"{rank}.json").write_text(json.dumps(rows), encoding="utf-8")
    dist.destroy_process_group()


def measure(config: RunConfig, rounds: int) -> dict[str, list[list[Spent]]]:
    """What every rank spent in every step, by placement: [round][rank]."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(rank_main, (config, rounds, folder), nprocs=RANKS, start_method="fork")
        told = [json.loads(Path(folder, f"{rank}.json").read_text(encoding="utf-8")) for rank in range(RANKS)]
    return {name: [[Spent(**rank[name][at]) for rank in told] for at in range(rounds)] for name in (EVERYWHERE, FIRST)}


def own_core_seconds(ranks: Sequence[Spent], config: RunConfig) -> float:
    """A step's time had each rank a core of its own: the slowest rank's part of every phase that all wait for, and the
    pipeline's passes played with the processor seconds that their pieces took.
    """
    numbers = range(config.train.global_batch_pairs // config.layout.microbatch_pairs)
    queues = zip(orders(config.layout, len(numbers)), ranks, strict=True)
    tasks = [list(zip(queue, rank.tasks, strict=True)) for queue, rank in queues]
    texts = [[(Task(TEXT, at, i), rank.text[i]) for i in numbers if rank.text] for at, rank in enumerate(ranks)]
    look = max(rank.phases["resample"] + rank.phases.get("encode", 0.0) for rank in ranks)
    join = max(rank.phases["join"] + rank.phases["contrast"] - sum(rank.text) for rank in ranks)
    rest = max(rank.phases["learn"] - sum(rank.tasks) + rank.phases["update"] for rank in ranks)
    return look + join + play(texts) + play(tasks) + rest


def play(queues: Sequence[Sequence[tuple[Task, float]]]) -> float:
    """When the last of every rank's tasks ends, each begun in its order as soon as its microbatch is there."""
    done: dict[Task, float] = {}
    free, places = [0.0] * len(queues), [0] * len(queues)
    while any(place < len(queue) for place, queue in zip(places, queues, strict=True)):
        before = sum(places)
        for rank, queue in enumerate(queues):
            while places[rank] < len(queue) and all(need in done for need in needs(queue[places[rank]][0])):
                task, seconds = queue[places[rank]]
                arrived = max((done[need] for need in needs(task)), default=0.0)
                done[task] = free[rank] = max(free[rank], arrived) + seconds
                places[rank] += 1
        assert sum(places) > before, f"the schedule waits for itself after {before} tasks"
    return max(free)


def needs(task: Task) -> list[Task]:
    """What a task waits for: forwards for the stage before, backwards for their forward and the stage behind."""
    if task.kind == BACKWARD:
        behind = [Task(BACKWARD, task.chunk + 1, task.microbatch)] if task.chunk + 1 < RANKS else []
        return [Task(FORWARD, task.chunk, task.microbatch), *behind]
    return [Task(task.kind, task.chunk - 1, task.microbatch)] if task.chunk else []


def simulated(text_tokens: int) -> dict[str, float]:
    """The planner's step of the 30.2 B recipe on its 512 H100, in seconds by placement, and their ratio."""
    config = override(recipes.find("video_30b"), [f"data.text_tokens={text_tokens}"])
    seconds = {name: simulate(config, machine_of("h100"), place).seconds for name, place in PLANNED.items()}
    told = {f"{name}_seconds": round(value, 3) for name, value in seconds.items()}
    ratios = {"ratio": round(seconds[FIRST] / seconds[EVERYWHERE], 3)}
    return {"text_tokens": text_tokens, "encoder_over_stage": round(encoder_over_stage(config), 2)} | told | ratios


def summarise(found: dict[str, list[list[Spent]]], config: RunConfig) -> dict[str, Any]:
    """Medians over rounds by placement, and ratios of the first stage over all ranks, paired by round."""
    own = {name: [own_core_seconds(ranks, config) for ranks in rounds] for name, rounds in found.items()}
    wall = {name: [max(rank.wall for rank in ranks) for ranks in rounds] for name, rounds in found.items()}
    busiest = {name: [max(rank.phases.get("encode", 0.0) for rank in ranks) for ranks in found[name]] for name in found}
    total = {name: [sum(sum(rank.phases.values()) for rank in ranks) for ranks in found[name]] for name in found}
    rows = {
        name: {
            "own_core_seconds": round(statistics.median(own[name]), 4),
            "wall_seconds": round(statistics.median(wall[name]), 4),
            "busiest_encoder_processor_seconds": round(statistics.median(busiest[name]), 4),
            "all_processor_seconds": round(statistics.median(total[name]), 4),
        }
        for name in found
    }
    return {"placements": rows, "ratio_own_core": quartiles(own), "ratio_wall": quartiles(wall)}


def quartiles(seconds: dict[str, list[float]]) -> list[float]:
    """Quartiles of the first stage's time over that of all ranks, round by round."""
    return ratios_of(seconds[FIRST], seconds[EVERYWHERE])


def main() -> None:
    """Measure, simulate, print, write; exit 1 where the two placements did not compute the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "placement.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    config = heavy()
    found = measure(config, asked.rounds)
    losses = [rank.losses for rounds in found.values() for ranks in rounds for rank in ranks]
    apart = max(max(column) - min(column) for column in zip(*losses, strict=True))
    told = {
        "about": {
            "counts": "a training step of four pipeline ranks over gloo, float32; own_core: processor seconds in the "
            "order of the step, a core a rank, messages free; wall: on this machine, whose cores the ranks share",
            "pairs": config.train.global_batch_pairs,
            "microbatch_pairs": config.layout.microbatch_pairs,
            "encoder_over_stage": round(encoder_over_stage(config), 2),
            "rounds": asked.rounds,
            "largest_loss_difference": apart,
        },
        **summarise(found, config),
        "simulated_30b_on_512_h100": [simulated(tokens) for tokens in (512, 77)],
    }
    write(asked.out, told)
    print(json.dumps(told, indent=2))
    if apart > LOSS_TOLERANCE:
        sys.exit(f"the placements' losses differ by {apart:g}, more than {LOSS_TOLERANCE:g}")


if __name__ == "__main__":
    main()
