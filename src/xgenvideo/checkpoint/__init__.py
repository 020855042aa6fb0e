"""Saving and loading a run: store.py (whole or not there), lease.py (one writer a run directory)."""

from xgenvideo.checkpoint.lease import Lease
from xgenvideo.checkpoint.store import (
    Checkpoint,
    Found,
    checkpoints,
    load_checkpoint,
    newest_verified,
    prune,
    save_checkpoint,
)

__all__ = [
    "Checkpoint",
    "Found",
    "Lease",
    "checkpoints",
    "load_checkpoint",
    "newest_verified",
    "prune",
    "save_checkpoint",
]
