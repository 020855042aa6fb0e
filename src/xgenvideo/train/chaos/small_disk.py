"""A run on a disk that fills up, then on one that cannot be written: in a mount namespace of its own, so without root.

Run by faults.py in a process under `unshare`: python -m xgenvideo.train.chaos.small_disk CONFIG.json OUT KEEP.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from xgenvideo import config as configs
from xgenvideo.checkpoint import standings
from xgenvideo.checkpoint.run import CHECKPOINTS
from xgenvideo.config import RunConfig, override
from xgenvideo.errors import XGenVideoError
from xgenvideo.train.loop import train

DISK_BYTES = 400_000_000
FILLER = "filler"


def main(config: RunConfig, out: Path, keep: Path) -> None:
    """Print as JSON what happened; the run that ended well is copied to `keep`."""
    out.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(out)], check=True)
    train(override(config, [f"train.stop_after_steps={config.train.save_every_steps * 2}"]), out, quiet=True)
    told: dict[str, Any] = {"before": verified(out)}
    size = sum(path.stat().st_size for path in next((out / CHECKPOINTS).glob("step-*")).iterdir())
    fill(out / FILLER, size // 2)
    told["full"], told["after_full"] = attempt(config, out), verified(out)
    goes_on = override(config, ["safety.failed_saves_allowed=100"])
    told["goes_on"], told["after_goes_on"] = attempt(goes_on, out), verified(out)
    (out / FILLER).unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
    told["read_only"], told["after_read_only"] = attempt(config, out), verified(out)
    subprocess.run(["mount", "-o", "remount,rw", str(out)], check=True)
    told["mended"] = attempt(config, out)
    shutil.copytree(out, keep)
    print(json.dumps(told))


def fill(path: Path, left: int) -> None:
    """Take all room of the disk but `left` bytes."""
    status = os.statvfs(path.parent)
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - left)


def attempt(config: RunConfig, out: Path) -> str:
    """Train on; the sentence that it ends with, or nothing."""
    try:
        train(config, out, quiet=True)
    except XGenVideoError as error:
        return str(error)
    return ""


def verified(out: Path) -> list[str]:
    """The checkpoints that verify from disk."""
    return [standing.path.name for standing in standings(out / CHECKPOINTS) if not standing.reason]


if __name__ == "__main__":
    main(configs.load(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
