"""The measured bubble: a rank whose neighbour is slow waits for it, and only that is waiting."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xgenvideo.parallel.waiting import Waiting

SCRIPT = Path(__file__).parent / "slow_stage.py"
MICROBATCHES, SLEEP_SECONDS = 4, 0.1


def test_a_rank_waits_for_its_slow_neighbour_and_the_log_says_for_how_much_of_the_step(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "store"), str(SLEEP_SECONDS)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = json.loads(done.stdout.splitlines()[-1])
    slept = MICROBATCHES * SLEEP_SECONDS
    assert first["waited"] > 0.8 * slept
    # The sleep itself is the second rank's computing, not its waiting.
    assert second["waited"] < first["waited"] - 0.5 * slept
    rates = first["rates"]
    assert rates["bubble"] == pytest.approx(second["rates"]["bubble"], rel=0.1)
    share_of_the_first = slept / rates["seconds_per_step"]
    assert 0.8 * share_of_the_first / 2 < rates["bubble"] < 1
    assert rates["peak_rss_mb"] == second["rates"]["peak_rss_mb"] > 100


def test_waiting_is_running_less_computing() -> None:
    waiting = Waiting()
    with waiting.running():
        time.sleep(0.02)
        with waiting.computing():
            time.sleep(0.2)
    assert 0.02 <= waiting.take() < 0.15
    assert waiting.take() == pytest.approx(0.0)
