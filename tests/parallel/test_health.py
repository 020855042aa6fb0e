"""Ranks that hold other weights than they should, or that are slow, are named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from xgenvideo.parallel.health import SlowRank, differing
from xgenvideo.parallel.layout import Layout
from xgenvideo.parallel.watchdog import EXIT_HUNG, Watchdog
from xgenvideo.parallel.world import World

SCRIPT = Path(__file__).parent / "differing_weights.py"


def test_a_flipped_bit_names_its_rank_and_part(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), "3", str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(3)
    ]
    told = [rank.communicate(timeout=100) for rank in ranks]
    assert not any(rank.returncode for rank in ranks), told
    for out, _ in told:
        alike, encoder, decoder, temperature, slow = json.loads(out.splitlines()[-1])
        assert alike == ""
        assert "step 7" in encoder
        assert "(rank 1: the frozen encoder)" in encoder
        assert "(rank 2: the decoder)" in decoder
        assert "(rank 0: the temperature)" in temperature
        assert slow.startswith("rank 1 is slow: 5.500 s of its own work a step, the median rank 1.000 s")


def test_a_slow_rank_is_one_that_holds_the_others_up() -> None:
    assert SlowRank(1, seconds=0.2, median=0.1, step=0.3).holds_up(1.5)
    assert not SlowRank(1, seconds=0.14, median=0.1, step=0.3).holds_up(1.5)
    assert not SlowRank(1, seconds=0.002, median=0.001, step=0.3).holds_up(1.5)


def test_without_a_majority_every_rank_is_named() -> None:
    assert differing({0: 5, 1: 5, 2: 5}) == []
    assert differing({0: 5, 1: 6, 2: 5}) == [1]
    assert differing({0: 5, 1: 6}) == [0, 1]


def test_waiting_for_storage_is_not_hanging_but_a_long_step_is(tmp_path: Path) -> None:
    script = """
import time
from xgenvideo.parallel.watchdog import Watchdog
from xgenvideo.parallel.world import single_process
world = single_process()
with Watchdog(world, 30, 0.4):
    world.phases.next_step()
    world.phases.enter("save")
    time.sleep(0.9)
    print("saved", flush=True)
    world.phases.enter("learn")
    time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (EXIT_HUNG, "saved\n")
    assert "(train.step_timeout_seconds), hung: rank 0 in phase 'learn' of step 2" in done.stderr


class Counting:
    """A store that counts what it is asked."""

    def __init__(self, store: TCPStore) -> None:
        self.store, self.asked = store, 0

    def __getattr__(self, name: str) -> Any:
        self.asked += 1
        return getattr(self.store, name)


def test_where_all_ranks_are_takes_two_questions_of_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr("xgenvideo.parallel.watchdog._store", lambda: store)
    dog = Watchdog(World(0, 512, torch.device("cpu"), Layout(8, 16, 4)), 1800, 600)
    counting = Counting(dog._store)
    dog._store = counting
    for rank in range(511):
        dog._store.set(str(rank), json.dumps({"beat": rank, "step": 3, "phase": "learn", "at": 2}))
    places = dog._places()
    assert {rank: place["beat"] for rank, place in places.items()} == {rank: rank for rank in range(511)} | {511: 0}
    assert places[511]["phase"] == "start"
    dog._store.set("511", json.dumps({"beat": 511, "step": 3, "phase": "learn", "at": 2}))
    counting.asked = 0
    assert [place["beat"] for place in dog._places().values()] == list(range(512))
    assert counting.asked == 2
