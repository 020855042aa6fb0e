"""What crosses the wires in a step does not grow with the number of microbatches."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parent / "count_traffic.py"


def counted(folder: Path, microbatch_pairs: int) -> list[dict[str, Any]]:
    """The collectives of one step on each of four ranks: two pipeline stages, two replicas."""
    store = folder / f"store-{microbatch_pairs}"
    command = [sys.executable, str(SCRIPT)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), "4", str(store), str(microbatch_pairs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(4)
    ]
    told = [rank.communicate(timeout=200) for rank in ranks]
    assert not any(rank.returncode for rank in ranks), told
    found: list[dict[str, Any]] = json.loads(told[0][0].splitlines()[-1])
    return found


def test_one_gather_and_one_reduction_a_parameter_group_whatever_the_microbatches(tmp_path: Path) -> None:
    few, many = counted(tmp_path, 6), counted(tmp_path, 2)
    for once, often in zip(few, many, strict=True):
        for seen in (once["seen"], often["seen"]):
            # A group for each block, one for what else the stage holds, one for the trunk of the visual world.
            groups = once["blocks"] + 2
            assert seen["_reduce_scatter_base_"] == groups
            # Beside the weights: video embeddings, text embeddings, caption groups, and the texts of the replica.
            assert seen["_allgather_base_"] == groups + 4
            assert (seen["gather_"], seen["scatter_"]) == (1, 1)
            # With a tensor axis of one nothing is cut, and no product pays for finding out.
            assert seen["of DTensor"] == 0
        assert often["seen"]["send"] > once["seen"]["send"]
