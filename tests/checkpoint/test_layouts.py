"""What one layout saved, every other layout loads, weights and optimizer, bit for bit; over real ranks."""

import json
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


def check_files(path: Path, source: str) -> None:
    """What ranks hold alike must not make a rank read much of what the others wrote."""
    assert len(list(path.glob("small-*-of-00004.safetensors"))) == 4
    index = json.loads((path / "index.json").read_text())["tensors"]
    large = {piece["file"] for piece in index["model/embedding.weight"]["pieces"]}
    assert all(file.startswith("model-") for file in large)
    counts = {piece["file"] for name, about in index.items() if name.endswith(".step") for piece in about["pieces"]}
    # Counts of steps are written by the first rank of those that hold the same layers.
    stages = {"tp2pp2": (0, 2), "pp4": (0, 1, 2, 3), "pp2dp2 virtual": (0, 2)}.get(source, (0,))
    assert counts == {f"small-{rank:05d}-of-00004.safetensors" for rank in stages}


@pytest.mark.parametrize(
    "source", ["tp2pp2", *(pytest.param(name, marks=pytest.mark.slow) for name in FOUR if name != "tp2pp2")]
)
def test_a_checkpoint_of_four_ranks_loads_in_every_layout(tmp_path: Path, source: str) -> None:
    folder = tmp_path / "checkpoints"
    assert run_ranks(folder, 4, source) == FOUR
    [path] = folder.iterdir()
    check_files(path, source)
    if source != "dp4":
        assert run_ranks(folder, 2, "") == TWO


@pytest.mark.slow
@pytest.mark.parametrize("source", TWO)
def test_a_checkpoint_of_two_ranks_loads_on_four(tmp_path: Path, source: str) -> None:
    assert run_ranks(tmp_path / "checkpoints", 2, source) == TWO
    assert run_ranks(tmp_path / "checkpoints", 4, "") == FOUR
