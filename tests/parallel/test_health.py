"""Ranks that hold other weights than they should, or that are slow, are named."""

import json
import os
import subprocess
import sys
from pathlib import Path

from xgenvideo.parallel.health import SlowRank, differing
from xgenvideo.parallel.watchdog import EXIT_HUNG

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
