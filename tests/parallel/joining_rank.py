"""A rank that joins the others as `xgv train` does, or never comes; run by test_meeting.py under torchrun."""

import json
import os
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from xgenvideo.config import LayoutConfig
from xgenvideo.errors import XGenVideoError
from xgenvideo.parallel.world import join_world, leave_world

STEP_SECONDS = 600.0


def main(missing: int, seconds: float) -> None:
    """Join within `seconds`; rank `missing` sleeps instead."""
    if int(os.environ["RANK"]) == missing:
        time.sleep(600)
    try:
        world = join_world(LayoutConfig(data=3), startup_seconds=seconds, step_seconds=STEP_SECONDS)
    except XGenVideoError as error:
        tell(str(error))
        sys.exit(error.exit_code)
    world.wait()
    assert world.groups is not None
    waits = {name: patience(group) for name, group in vars(world.groups).items() if not isinstance(group, DeviceMesh)}
    tell(json.dumps(waits))
    leave_world()


def tell(text: str) -> None:
    """One line in one write: torchrun starts ranks unbuffered, where `print` writes the line's end apart."""
    sys.stderr.write(f"told by rank {os.environ['RANK']}: {text}\n")


def patience(group: dist.ProcessGroup) -> float:
    """How long a collective of a group waits, in seconds."""
    seconds: float = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    return seconds


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
