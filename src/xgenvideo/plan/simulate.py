"""A discrete-event simulation of one step: what every pipeline rank of a replica does when.

Phases: encoders over all ranks, the text pass, the pipeline in its schedule's real order, the resamplers' backward,
gradient traffic, optimizer. Messages arrive after their time; the part of it that nothing hides keeps the sender busy.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xgenvideo.config import RunConfig
from xgenvideo.plan.kernels import BF16_BYTES, message
from xgenvideo.plan.memory import message_numbers
from xgenvideo.plan.pipeline import rank_of
from xgenvideo.plan.schedule import BACKWARD, FORWARD, TEXT, WEIGHT, Task, orders, text_orders
from xgenvideo.plan.timing import (
    Machine,
    StageTimes,
    StepTime,
    chunk_times,
    microbatches_of,
    step_time,
    work_of,
)
from xgenvideo.plan.units import unit_times

SPLIT_BACKWARD = ("zero_bubble", "zbv")


@dataclass(frozen=True)
class Event:
    """One bar of the timeline: what a rank did from `start` to `end`, in seconds from the step's start."""

    rank: int
    name: str
    kind: str
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """One simulated step. `closed_form` is the same step by timing.py, to compare."""

    events: tuple[Event, ...]
    seconds: float
    pipeline_seconds: float
    closed_form: StepTime

    @property
    def difference(self) -> float:
        """Simulation over closed form, less one."""
        return self.seconds / self.closed_form.total - 1


@dataclass(frozen=True)
class _Pipe:
    """What the pipeline's simulation needs: chunk times, messages, and which rank holds which chunk."""

    chunks: tuple[StageTimes, ...]
    ranks: tuple[int, ...]
    blocked: float
    flight: float

    def seconds(self, task: Task, split: bool) -> float:
        """How long the rank is busy with a task, what it is blocked by its message included."""
        chunk = self.chunks[task.chunk]
        last = task.chunk == len(self.chunks) - 1
        sends = {FORWARD: not last, TEXT: not last, BACKWARD: task.chunk > 0, WEIGHT: False}[task.kind]
        own = {
            FORWARD: chunk.forward,
            TEXT: chunk.text,
            BACKWARD: chunk.backward / (2 if split else 1),
            WEIGHT: chunk.backward / 2,
        }[task.kind]
        half = 0.5 if task.kind == TEXT else 1.0
        return own + (self.blocked * half if sends else 0.0)


def simulate(config: RunConfig, machine: Machine, placement: str = "all_ranks", recompute: str = "none") -> Timeline:
    """Play one step of `config` on `machine`; the same arguments as timing.step_time."""
    closed = step_time(config, machine, placement, recompute)
    layout, microbatches = config.layout, microbatches_of(config)
    pipe = _pipe(config, machine, chunk_times(config, machine, placement, recompute))
    backward = _resampler_backward(config, machine, closed)
    events = _everywhere(layout.pipeline, "encode and resample", "visual", 0.0, closed.visual - backward)
    time = closed.visual - backward + closed.join / 2
    if closed.text_pass > 0:
        played = _play(pipe, text_orders(layout, microbatches, sum(chunk.text > 0 for chunk in pipe.chunks)))
        events += _shifted(played, time)
        time += max(event.end for event in played)
    if layout.schedule in SPLIT_BACKWARD:
        played = _play_greedily(pipe, microbatches, layout.pipeline, len(pipe.chunks))
    else:
        played = _play(pipe, orders(layout, microbatches))
    pipeline = max(event.end for event in played)
    events += _shifted(played, time)
    time += pipeline + closed.join / 2
    tail = (
        ("resampler backward", "visual", backward),
        ("gradients", "traffic", closed.data),
        ("optimizer", "optimizer", closed.optimizer),
        ("waiting for the slowest", "waiting", closed.jitter),
    )
    for name, kind, seconds in tail:
        events += _everywhere(layout.pipeline, name, kind, time, seconds)
        time += seconds
    return Timeline(tuple(events), time, pipeline, closed)


def _resampler_backward(config: RunConfig, machine: Machine, closed: StepTime) -> float:
    """The part of the visual phase that comes after the pipeline."""
    if closed.visual == 0:
        return 0.0
    units = unit_times(config.model, work_of(config, machine))
    encoder = 0.0 if config.data.cache_features or closed.placement == "cached" else units.encoder
    return closed.visual * 2 * units.resampler / (encoder + 3 * units.resampler)


def _pipe(config: RunConfig, machine: Machine, chunks: tuple[StageTimes, ...]) -> _Pipe:
    layout, model = config.layout, config.model
    latents = model.resampler.queries * model.resampler.width
    numbers = layout.microbatch_pairs * message_numbers(model.decoder, config.data.text_tokens, latents)
    one = 0.0
    if layout.pipeline > 1:
        one = message(machine.cluster, machine.rates, BF16_BYTES * numbers / layout.tensor)
    rates = machine.rates
    shown = rates.exposed_messages_overlapped if machine.software.overlaps_messages else rates.exposed_messages
    blocked = min(1.0, shown) * one
    return _Pipe(chunks, tuple(rank_of(stage, layout) for stage in range(len(chunks))), blocked, one - blocked)


def _play(pipe: _Pipe, queues: Sequence[Sequence[Task]]) -> list[Event]:
    """Every rank works through its queue in order, each task as soon as what it needs has arrived."""
    done: dict[Task, float] = {}
    free, place = [0.0] * len(queues), [0] * len(queues)
    events: list[Event] = []
    moved = True
    while moved:
        moved = False
        for rank, queue in enumerate(queues):
            while place[rank] < len(queue):
                task = queue[place[rank]]
                ready = _arrival(pipe, task, done)
                if ready is None:
                    break
                _do(pipe, task, rank, max(ready, free[rank]), False, done, free, events)
                place[rank] += 1
                moved = True
    left = sum(len(queue) - at for queue, at in zip(queues, place, strict=True))
    assert left == 0, f"schedule waits for itself: {left} of {sum(map(len, queues))} tasks left"
    return events


def _play_greedily(pipe: _Pipe, microbatches: int, stages: int, chunks: int) -> list[Event]:
    """Zero-bubble schedules: backward first, then a forward if there is room, weight gradients in the gaps."""
    done: dict[Task, float] = {}
    free = [0.0] * stages
    events: list[Event] = []
    following = {(kind, chunk): 0 for kind in (FORWARD, BACKWARD, WEIGHT) for chunk in range(chunks)}
    held = [[chunk for chunk in range(chunks) if pipe.ranks[chunk] == rank] for rank in range(stages)]
    for _ in range(3 * microbatches * chunks):
        best: tuple[float, int, int, Task] | None = None
        for rank in range(stages):
            for urgency, kind in enumerate((BACKWARD, FORWARD, WEIGHT)):
                for chunk in reversed(held[rank]):
                    # As many activations as 1F1B holds: one more for every chunk that is nearer to the end.
                    flying = following[FORWARD, chunk] - following[WEIGHT, chunk]
                    if kind == FORWARD and flying >= chunks - chunk:
                        continue
                    number = following[kind, chunk]
                    task = Task(kind, chunk, number)
                    ready = None if number == microbatches else _arrival(pipe, task, done)
                    if ready is not None:
                        found = (max(ready, free[rank]), urgency, rank, task)
                        best = found if best is None or found[:2] < best[:2] else best
        assert best is not None, f"zero-bubble schedule waits for itself after {len(done)} tasks"
        start, _, rank, task = best
        _do(pipe, task, rank, start, True, done, free, events)
        following[task.kind, task.chunk] += 1
    return events


def _arrival(pipe: _Pipe, task: Task, done: dict[Task, float]) -> float | None:
    """When everything that `task` needs is there, or None while something is not done."""
    needs: list[tuple[Task, bool]] = []
    last = len(pipe.chunks) - 1
    if task.kind in (FORWARD, TEXT) and task.chunk > 0:
        needs.append((Task(task.kind, task.chunk - 1, task.microbatch), True))
    if task.kind == BACKWARD:
        needs.append((Task(FORWARD, task.chunk, task.microbatch), False))
        if task.chunk < last:
            needs.append((Task(BACKWARD, task.chunk + 1, task.microbatch), True))
    if task.kind == WEIGHT:
        needs.append((Task(BACKWARD, task.chunk, task.microbatch), False))
    latest = 0.0
    for need, sent in needs:
        end = done.get(need)
        if end is None:
            return None
        crosses = sent and pipe.ranks[need.chunk] != pipe.ranks[task.chunk]
        latest = max(latest, end + (pipe.flight if crosses else 0.0))
    return latest


def _do(
    pipe: _Pipe,
    task: Task,
    rank: int,
    start: float,
    split: bool,
    done: dict[Task, float],
    free: list[float],
    events: list[Event],
) -> None:
    end = start + pipe.seconds(task, split)
    done[task] = free[rank] = end
    events.append(Event(rank, f"{task.kind} {task.microbatch} (chunk {task.chunk})", task.kind, start, end))


def _everywhere(ranks: int, name: str, kind: str, start: float, seconds: float) -> list[Event]:
    return [Event(rank, name, kind, start, start + seconds) for rank in range(ranks) if seconds > 0]


def _shifted(events: Sequence[Event], seconds: float) -> list[Event]:
    return [Event(event.rank, event.name, event.kind, event.start + seconds, event.end + seconds) for event in events]


def idle_share(timeline: Timeline, ranks: int) -> float:
    """Share of the ranks' time in which nothing runs."""
    busy = math.fsum(event.end - event.start for event in timeline.events)
    return 1 - busy / (ranks * timeline.seconds)
