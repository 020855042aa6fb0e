"""Checkpoints that keep promises: atomic, hashed, never pickled, never overwritten, one writer a run folder."""

from xgenvideo.checkpoint.lease import Lease, take_lease
from xgenvideo.checkpoint.load import Search, load, newest_verified, search, verify
from xgenvideo.checkpoint.run import Run, load_run
from xgenvideo.checkpoint.save import save, sweep
from xgenvideo.checkpoint.snapshot import Snapshot

__all__ = [
    "Lease",
    "Run",
    "Search",
    "Snapshot",
    "load",
    "load_run",
    "newest_verified",
    "save",
    "search",
    "sweep",
    "take_lease",
    "verify",
]
