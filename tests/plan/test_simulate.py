"""The simulated step against the closed form, and what must hold of any timeline."""

import itertools
import json
import xml.etree.ElementTree

import pytest

from xgenvideo.config import RunConfig, override
from xgenvideo.plan.memory import memory
from xgenvideo.plan.pictures import chrome_trace, memory_svg, timeline_svg, trace_text
from xgenvideo.plan.report import machine_of
from xgenvideo.plan.schedule import BACKWARD, FORWARD, orders
from xgenvideo.plan.simulate import Timeline, idle_share, simulate
from xgenvideo.recipes import find

SCHEDULES = [
    ("1f1b", 1),
    ("gpipe", 1),
    ("interleaved_1f1b", 2),
    ("interleaved_1f1b", 3),
    ("zero_bubble", 1),
    ("zbv", 2),
]


def planned(schedule: str, chunks: int, *more: str) -> RunConfig:
    return override(find("video_30b"), [f"layout.schedule={schedule}", f"layout.virtual_stages={chunks}", *more])


def played(config: RunConfig, placement: str = "all_ranks") -> Timeline:
    return simulate(config, machine_of("h100"), placement)


@pytest.mark.parametrize("placement", ["all_ranks", "stage_0"])
@pytest.mark.parametrize(("schedule", "chunks"), SCHEDULES)
def test_simulation_and_closed_form_agree(schedule: str, chunks: int, placement: str) -> None:
    found = played(planned(schedule, chunks, "layout.pipeline=4", "layout.data=32"), placement)
    assert abs(found.difference) < 0.03


def test_encoder_over_all_ranks_beats_stage_0_in_the_simulation_too() -> None:
    config = planned("1f1b", 1)
    everywhere, first = played(config), played(config, "stage_0")
    assert first.seconds > 2 * everywhere.seconds
    assert idle_share(first, 8) > 0.5 > idle_share(everywhere, 8) > 0


def test_no_rank_does_two_things_at_once() -> None:
    found = played(planned("interleaved_1f1b", 2))
    for rank in range(8):
        events = sorted((event for event in found.events if event.rank == rank), key=lambda event: event.start)
        assert all(second.start >= first.end - 1e-9 for first, second in itertools.pairwise(events))
    assert max(event.end for event in found.events) == pytest.approx(found.seconds)


@pytest.mark.parametrize(("schedule", "chunks"), SCHEDULES[:4])
def test_orders_hold_every_task_once(schedule: str, chunks: int) -> None:
    layout = planned(schedule, chunks).layout
    tasks = [task for queue in orders(layout, 16) for task in queue]
    assert len(tasks) == len(set(tasks)) == 2 * 16 * 8 * chunks
    assert {task.kind for task in tasks} == {FORWARD, BACKWARD}


def test_pictures_and_trace() -> None:
    config = planned("1f1b", 1)
    found = played(config)
    trace = json.loads(trace_text(found))
    assert trace == chrome_trace(found)
    bars = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(bars) == len(found.events)
    assert max(bar["ts"] + bar["dur"] for bar in bars) == pytest.approx(found.seconds * 1e6)
    for picture in (timeline_svg(found, "a < b"), memory_svg(memory(config, 512), 80e9, "memory")):
        assert xml.etree.ElementTree.fromstring(picture).tag.endswith("svg")
