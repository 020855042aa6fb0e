"""What one layout saved, every other layout loads, weights and optimizer, bit for bit; over real ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("toy_layouts.py")
FOUR = ["tp2pp2", "dp4", "dp4 replicated", "pp4", "tp2dp2", "pp2dp2 virtual"]
TWO = ["pp2", "dp2"]


def run_ranks(folder: Path, world: int, source: str) -> list[str]:
    """Run the script on `world` ranks; what rank 0 printed. Fails with what the ranks said."""
    store = folder.parent / f"store-{folder.name}-{world}-{source}".replace(" ", "-")
    commands = [
        [sys.executable, str(SCRIPT), str(world), str(rank), str(store), str(folder), source] for rank in range(world)
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for command in commands
    ]
    said = [child.communicate(timeout=200) for child in children]
    assert [child.returncode for child in children] == [0] * world, "\n".join(told[1][-3000:] for told in said)
    return said[0][0].splitlines()


@pytest.mark.parametrize(
    "source", ["tp2pp2", *(pytest.param(name, marks=pytest.mark.slow) for name in FOUR if name != "tp2pp2")]
)
def test_a_checkpoint_of_four_ranks_loads_in_every_layout(tmp_path: Path, source: str) -> None:
    folder = tmp_path / "checkpoints"
    assert run_ranks(folder, 4, source) == FOUR
    [path] = folder.iterdir()
    assert len(list(path.glob("model-*-of-00004.safetensors"))) == 4
    if source != "dp4":
        assert run_ranks(folder, 2, "") == TWO


@pytest.mark.slow
@pytest.mark.parametrize("source", TWO)
def test_a_checkpoint_of_two_ranks_loads_on_four(tmp_path: Path, source: str) -> None:
    assert run_ranks(tmp_path / "checkpoints", 2, source) == TWO
    assert run_ranks(tmp_path / "checkpoints", 4, "") == FOUR
