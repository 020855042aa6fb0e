"""A rank that never comes: the others end in time, and one sentence names it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "joining_rank.py"
SECONDS = 2


def joined(missing: int, share_store: bool, seconds: int = SECONDS) -> tuple[int, list[str], float]:
    """Three ranks under torchrun: its exit code, what the ranks told, and the seconds that it took."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "01"[not share_store]}
    began = time.monotonic()
    done = subprocess.run(
        [*command, str(missing), str(seconds)],
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
    code, told, seconds = joined(2, share_store)
    assert code != 0
    [line] = told
    expected = (
        f"told by rank 0: train.startup_timeout_seconds = {SECONDS}: rank 2 of 3 did not come in time; start every"
    )
    assert line.startswith(expected)
    assert seconds < SECONDS + 40, "far below the minutes that torch itself waits, on a busy machine too"


def test_every_group_waits_as_long_as_the_settings_say() -> None:
    code, told, _ = joined(missing=-1, share_store=False, seconds=7200)
    assert code == 0
    waits = [json.loads(line.partition(": ")[2]) for line in told]
    assert len(waits) == 3
    assert waits[0].keys() == {"replica", "data", "pipeline", "pipeline_back", "tensor"}
    assert {seconds for groups in waits for seconds in groups.values()} == {7200}


def test_without_the_first_rank_the_others_name_it() -> None:
    code, told, _ = joined(0, share_store=False)
    assert code != 0
    assert told
    assert all("train.startup_timeout_seconds = 2: rank 0 of 3 has not come to" in line for line in told)


def test_ranks_that_do_not_fit_the_layout_are_told_once_under_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "xgenvideo"]
    command += ["train", "tiny", "layout.pipeline=3", "layout.microbatch_pairs=1", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("xgv train")]
    assert "layout.tensor x layout.pipeline x layout.data = 1 x 3 x 1 = 3 ranks, 2 are there" in line
    assert not (tmp_path / "run").exists()
