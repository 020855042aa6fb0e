"""A rank that never comes: the others end in time, and one sentence names it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "joining_rank.py"
NOBODY, SECONDS = 99, 2


def joined(missing: int, share_store: bool) -> tuple[int, list[str], float]:
    """Three ranks under torchrun: its exit code, what the ranks told, and the seconds that it took."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "01"[not share_store]}
    began = time.monotonic()
    done = subprocess.run(
        [*command, str(missing), str(SECONDS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    told = [line for line in done.stderr.splitlines() if line.startswith("told by")]
    return done.returncode, told, time.monotonic() - began


@pytest.mark.parametrize("share_store", [True, False])
def test_a_missing_rank_is_named_once_and_the_others_end(share_store: bool) -> None:
    whole = joined(NOBODY, share_store)
    assert whole[:2] == (0, [])
    code, told, seconds = joined(2, share_store)
    assert code != 0
    [line] = told
    assert line.startswith(
        f"told by rank 0: train.startup_timeout_seconds = {SECONDS}: rank 2 of 3 did not come in time"
    )
    # Beside the timeout: what torchrun and three ranks take anyway, and torchrun's killing of the sleeper.
    assert seconds < whole[2] + SECONDS + 10


def test_without_the_first_rank_the_others_name_it() -> None:
    code, told, _ = joined(0, share_store=False)
    assert code != 0
    assert told
    assert all("train.startup_timeout_seconds = 2: rank 0 of 3 has not come to" in line for line in told)
