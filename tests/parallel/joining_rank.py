"""A rank that joins the others as `xgv train` does, or never comes; run by test_meeting.py under torchrun."""

import os
import sys
import time

from xgenvideo.config import LayoutConfig
from xgenvideo.errors import XGenVideoError
from xgenvideo.parallel.world import join_world, leave_world


def main(missing: int, seconds: float) -> None:
    """Join within `seconds`; rank `missing` sleeps instead."""
    if int(os.environ["RANK"]) == missing:
        time.sleep(600)
    try:
        world = join_world(LayoutConfig(data=3), startup_seconds=seconds)
    except XGenVideoError as error:
        print(f"told by rank {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    world.wait()
    leave_world()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
