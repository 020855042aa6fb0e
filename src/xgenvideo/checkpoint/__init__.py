"""Checkpoints that keep promises: atomic, hashed, never pickled, never overwritten, one writer a run folder."""

from xgenvideo.checkpoint.lease import Lease, take_lease
from xgenvideo.checkpoint.ledger import Account, Ledger, read_account
from xgenvideo.checkpoint.load import Search, load, load_into, newest_verified, search, verify
from xgenvideo.checkpoint.ranks import Ranks
from xgenvideo.checkpoint.retention import retain, standings, sweep
from xgenvideo.checkpoint.run import Run, load_run
from xgenvideo.checkpoint.save import save
from xgenvideo.checkpoint.saver import Retention, Saved, Saver
from xgenvideo.checkpoint.snapshot import EPHEMERAL, PERMANENT, Snapshot

__all__ = [
    "EPHEMERAL",
    "PERMANENT",
    "Account",
    "Lease",
    "Ledger",
    "Ranks",
    "Retention",
    "Run",
    "Saved",
    "Saver",
    "Search",
    "Snapshot",
    "load",
    "load_into",
    "load_run",
    "newest_verified",
    "read_account",
    "retain",
    "save",
    "search",
    "standings",
    "sweep",
    "take_lease",
    "verify",
]
