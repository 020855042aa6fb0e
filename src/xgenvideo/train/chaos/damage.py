"""Damage to the files of a checkpoint: every flipped bit, hole, cut, swap or foreign pickle has to be noticed."""

import random
import shutil
from pathlib import Path

from xgenvideo.checkpoint import Ranks, search
from xgenvideo.checkpoint.run import CHECKPOINTS
from xgenvideo.checkpoint.snapshot import step_folders
from xgenvideo.train.chaos.verdict import Verdict

FLIPS = 60
HOLE_BYTES = 1_000_000


def bomb(marker: Path) -> bytes:
    """What makes the file `marker` when it is unpickled: a pickle (protocol 0) that calls the shell."""
    return f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()


def flipped_bits(whole: Path, scratch: Path, seed: int) -> Verdict:
    """FLIPS single bits over all files of the newest checkpoint, each noticed before any weight is used."""
    run, rng = copy_of(whole, scratch), random.Random(seed)
    files = files_of(run)
    noticed = 0
    for number in range(FLIPS):
        path = files[number % len(files)]
        content = path.read_bytes()
        spoilt = bytearray(content)
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        noticed += passed_over(run, path, bytes(spoilt))
    return Verdict("bit_flip", "verified", noticed == FLIPS, figures={"flips": FLIPS, "noticed": noticed})


def holes_and_cuts(whole: Path, scratch: Path, seed: int) -> list[Verdict]:
    """A hole of 1 MB (or the file), a truncation and a shard of another step, in every file."""
    run, rng = copy_of(whole, scratch), random.Random(seed)
    older = step_folders(run / CHECKPOINTS)[1][1]
    noticed = {"hole": 0, "truncation": 0, "swapped_shard": 0}
    files = files_of(run)
    for path in files:
        content = path.read_bytes()
        start = rng.randrange(max(1, len(content) - HOLE_BYTES))
        hole = content[:start] + bytes(len(content[start : start + HOLE_BYTES])) + content[start + HOLE_BYTES :]
        noticed["hole"] += passed_over(run, path, hole)
        noticed["truncation"] += passed_over(run, path, content[: rng.randrange(len(content))])
        other = older / path.name
        noticed["swapped_shard"] += passed_over(run, path, other.read_bytes())
    figures = {"files": len(files)}
    return [
        Verdict(fault, "verified", count == len(files), figures=figures | {"noticed": count})
        for fault, count in noticed.items()
    ]


def pickles(whole: Path, scratch: Path) -> Verdict:
    """A file that runs code when it is unpickled, in place of each file: refused, and nothing runs."""
    run = copy_of(whole, scratch)
    marker = scratch / "it-ran"
    files = files_of(run)
    refused = sum(passed_over(run, path, bomb(marker)) for path in files)
    held = refused == len(files) and not marker.exists()
    return Verdict("pickle", "no code", held, figures={"files": len(files), "refused": refused})


def passed_over(run: Path, path: Path, content: bytes) -> bool:
    """Whether the search for the newest checkpoint passes over it while the file `path` has `content`."""
    before = path.read_bytes()
    if content == before:
        return True
    path.write_bytes(content)
    try:
        folders = [folder for _, folder in step_folders(run / CHECKPOINTS)]
        found = search(run / CHECKPOINTS, Ranks(0, 1, None))
        return found.newest == folders[1] and set(found.refused) == {folders[0]}
    finally:
        path.write_bytes(before)


def copy_of(whole: Path, scratch: Path) -> Path:
    """The run's checkpoints, to be damaged."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(whole / CHECKPOINTS, scratch / CHECKPOINTS)
    return scratch


def files_of(run: Path) -> list[Path]:
    """Every file of the newest checkpoint."""
    return sorted(path for path in step_folders(run / CHECKPOINTS)[0][1].iterdir() if path.is_file())
