"""What is not a number on one rank skips that one step on every rank: its batch, or its own loss alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "one_broken_batch.py"


def test_a_broken_batch_or_loss_of_one_rank_skips_one_step_on_all(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = json.loads(done.stdout.splitlines()[-1])
    assert len(ranks) == 4
    for steps in ranks:
        assert [step["finite"] for step in steps] == [True, False, True, False]
        assert [step["moved"] for step in steps] == [True, False, True, False]
        assert [step["counted"] for step in steps] == [[1], [1], [2], [2]]
