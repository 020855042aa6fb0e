"""Ranks share the making of a feature cache, and wait for a slow one longer than any collective would."""

import json
import os
import subprocess
import sys
from pathlib import Path

from xgenvideo.data.dataset import Dataset

SCRIPT = Path(__file__).parent / "slow_features.py"
TIMEOUT_SECONDS = 2.0


def test_each_rank_encodes_its_part_and_waiting_for_a_slow_one_is_no_hang(tiny_dataset: Dataset) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    done = subprocess.run(
        [*command, str(tiny_dataset.folder), str(TIMEOUT_SECONDS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["encoded"] == [53, 53]
    assert told["seconds"] > TIMEOUT_SECONDS
