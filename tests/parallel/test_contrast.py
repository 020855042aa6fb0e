"""The gradient of the contrastive loss in every layout is one process's over the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "contrast_gradients.py"
LAYOUTS = ["DP2/infonce", "TP2/infonce", "PP2/infonce", "TP2xPP2/infonce", "PP2xDP2/sigmoid"]
ANOTHER = "PP2/infonce/microbatch"

Differences = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def differences() -> Differences:
    """Largest relative difference of a tensor's gradient, by case; the ranks are forks of a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *(f"{layout}/global" for layout in LAYOUTS), ANOTHER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found: Differences = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_contrastive_gradient_of_the_whole_batch(differences: Differences, layout: str) -> None:
    assert differences[f"{layout}/global"]["to_global"] <= 1e-11


def test_microbatch_scope_has_another_gradient(differences: Differences) -> None:
    # It is the mean of the microbatches' own losses, and nowhere near the gradient over the whole batch.
    assert differences[ANOTHER]["to_own_scope"] <= 1e-11
    assert differences[ANOTHER]["to_global"] > 0.1
