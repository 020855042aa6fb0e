"""The order of work on every pipeline rank: forwards and backwards of chunks, as the schedules' papers give it."""

from dataclasses import dataclass

from xgenvideo.config import LayoutConfig
from xgenvideo.plan.pipeline import rank_of

FORWARD, BACKWARD, WEIGHT, TEXT = "forward", "backward", "weight", "text"


@dataclass(frozen=True)
class Task:
    """One piece of work: `chunk` is the stage's number in the order that a microbatch passes them."""

    kind: str
    chunk: int
    microbatch: int


def orders(layout: LayoutConfig, microbatches: int) -> list[list[Task]]:
    """The tasks of every rank in their order, for gpipe, 1f1b and interleaved_1f1b (arXiv 2104.04473)."""
    if layout.schedule == "gpipe":
        return [_all_forward_first(rank, microbatches) for rank in range(layout.pipeline)]
    if layout.virtual_stages == 1:
        return [_one_forward_one_backward(rank, layout.pipeline, microbatches) for rank in range(layout.pipeline)]
    return [_interleaved(rank, layout, microbatches) for rank in range(layout.pipeline)]


def text_orders(layout: LayoutConfig, microbatches: int, chunks: int) -> list[list[Task]]:
    """The forward-only pass through the first `chunks` chunks, in rounds of as many microbatches as ranks."""
    count = -(-microbatches // layout.pipeline) * layout.pipeline * layout.virtual_stages
    found: list[list[Task]] = [[] for _ in range(layout.pipeline)]
    for lap, number in (_interleaved_place(index, layout) for index in range(count)):
        for stage in range(lap * layout.pipeline, (lap + 1) * layout.pipeline):
            if stage < chunks and number < microbatches:
                found[rank_of(stage, layout)].append(Task(TEXT, stage, number))
    return found


def _all_forward_first(rank: int, microbatches: int) -> list[Task]:
    forward = [Task(FORWARD, rank, number) for number in range(microbatches)]
    return forward + [Task(BACKWARD, rank, number) for number in range(microbatches)]


def _one_forward_one_backward(rank: int, stages: int, microbatches: int) -> list[Task]:
    warm_up = min(stages - rank - 1, microbatches)
    tasks = [Task(FORWARD, rank, number) for number in range(warm_up)]
    for number in range(microbatches - warm_up):
        tasks += [Task(FORWARD, rank, warm_up + number), Task(BACKWARD, rank, number)]
    return tasks + [Task(BACKWARD, rank, number) for number in range(microbatches - warm_up, microbatches)]


def _interleaved(rank: int, layout: LayoutConfig, microbatches: int) -> list[Task]:
    stages, chunks = layout.pipeline, layout.virtual_stages
    count = microbatches * chunks
    warm_up = min(2 * (stages - rank - 1) + (chunks - 1) * stages, count)

    def forward(index: int) -> Task:
        lap, number = _interleaved_place(index, layout)
        return Task(FORWARD, lap * stages + rank, number)

    def backward(index: int) -> Task:
        lap, number = _interleaved_place(index, layout)
        return Task(BACKWARD, (chunks - 1 - lap) * stages + rank, number)

    tasks = [forward(index) for index in range(warm_up)]
    for index in range(count - warm_up):
        tasks += [forward(warm_up + index), backward(index)]
    return tasks + [backward(index) for index in range(count - warm_up, count)]


def _interleaved_place(index: int, layout: LayoutConfig) -> tuple[int, int]:
    """Lap and microbatch of a rank's forward number `index`: a round is `pipeline` microbatches through every lap."""
    round_number, within = divmod(index, layout.pipeline * layout.virtual_stages)
    lap, place = divmod(within, layout.pipeline)
    return lap, round_number * layout.pipeline + place
