"""Saving beside training: the training stall is one copy to host memory, the rest runs in a thread.

with Saver(out / "checkpoints", Retention(keep=2), lease, Ranks.of_process()) as saver:
    saver.save_async(snapshot)      # returns once the tensors are copied
    saver.wait()                    # or not at all: the next save waits for this one, and so does the end
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from xgenvideo.checkpoint.lease import Lease
from xgenvideo.checkpoint.load import verify_together
from xgenvideo.checkpoint.plan import SavePlans, signature
from xgenvideo.checkpoint.ranks import Ranks
from xgenvideo.checkpoint.remote import push
from xgenvideo.checkpoint.retention import retain
from xgenvideo.checkpoint.save import Staged, stage, write_staged
from xgenvideo.checkpoint.snapshot import PERMANENT, Snapshot, flat_tensors, step_folders
from xgenvideo.errors import CheckpointError, XGenVideoError


@dataclass(frozen=True)
class Retention:
    """How many permanent checkpoints stay (at least 2 do), and how many saves in a row may fail before it is an error.

    `copy_to`: a folder or URL that gets a copy of every checkpoint; a copy that fails is told and changes nothing.
    With `failures_allowed` = 0 a save that fails ends the run; with more the run goes on, less safe, and says so.
    """

    keep: int = 2
    failures_allowed: int = 0
    copy_to: str = ""


@dataclass(frozen=True)
class Saved:
    """What became of a save: where it is, or why it failed. `stall_seconds`: how long training waited for it."""

    step: int
    kind: str
    path: Path | None
    reason: str
    bytes: int
    stall_seconds: float
    write_seconds: float
    scrub_seconds: float
    removed: tuple[Path, ...] = ()
    spoilt: dict[Path, str] = field(default_factory=dict)
    copied: str = ""

    def __str__(self) -> str:
        if self.path is None:
            return f"step {self.step}: not saved: {self.reason}"
        told = f"{self.path}: {self.kind}, {self.bytes / 1e6:.1f} MB of this rank in {self.write_seconds:.2f} s"
        told = f"{told}, training waited {self.stall_seconds:.3f} s, read back in {self.scrub_seconds:.2f} s"
        told = f"{told}, {self.copied}" if self.copied else told
        return "; ".join([told, *(f"SPOILT ON DISK: {reason}" for reason in self.spoilt.values())])


class Saver:
    """Saves snapshots, one after the other, in a thread. Every rank of the job makes one and calls it alike."""

    def __init__(
        self, folder: Path, retention: Retention, lease: Lease | None = None, ranks: Ranks | None = None
    ) -> None:
        self.folder, self.retention, self.lease = folder, retention, lease
        self.ranks = ranks or Ranks(0, 1, None)
        self._plans: SavePlans | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saver")
        self._going: Future[Saved] | None = None
        self._failures = 0
        self._verified: set[Path] = set()
        self._turn = 0

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # A run that fails keeps its own error; what is being written is worth finishing all the same.
        try:
            if error is None:
                self.wait()
        finally:
            self._thread.shutdown(wait=True)

    def save_async(self, snapshot: Snapshot, kind: str = PERMANENT) -> Saved | None:
        """Copy the snapshot and write it in the background; returns what became of the save before.

        Waits for that one first. Raises CheckpointError when more saves in a row have failed than are allowed.
        """
        before = self.wait()
        began = time.perf_counter()
        tensors = flat_tensors(snapshot, self.ranks.rank)
        if self._plans is None or self._plans.signature != signature(tensors):
            self._plans = SavePlans(tensors, self.ranks)
        staged = stage(snapshot, kind, self._plans, self.ranks)
        self._going = self._thread.submit(self._work, staged, time.perf_counter() - began)
        return before

    def wait(self) -> Saved | None:
        """Wait for the save that is under way, if any, and tell what became of it; raises as `save_async` does."""
        if self._going is None:
            return None
        done, self._going = self._going.result(), None
        self._failures = self._failures + 1 if done.path is None else 0
        if self._failures > self.retention.failures_allowed:
            raise CheckpointError(done.reason)
        return done

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._going is not None and not self._going.done()

    def _work(self, staged: Staged, stall: float) -> Saved:
        """In the thread: write, commit, read back from disk, drop what is old."""
        began = time.perf_counter()
        try:
            path = write_staged(self.folder, staged, self.lease, self.ranks)
        except CheckpointError as error:
            wrote = time.perf_counter() - began
            return Saved(staged.step, staged.kind, None, str(error), staged.plans.bytes, stall, wrote, 0.0)
        written = time.perf_counter()
        spoilt = self._scrub(path)
        removed, copied = list[Path](), ""
        if self.ranks.rank == 0:
            removed = retain(self.folder, self.retention.keep, self._verified)
            copied = self._copy(path)
        return Saved(
            step=staged.step,
            kind=staged.kind,
            path=path,
            reason="",
            bytes=staged.plans.bytes,
            stall_seconds=stall,
            write_seconds=written - began,
            scrub_seconds=time.perf_counter() - written,
            removed=tuple(removed),
            spoilt=spoilt,
            copied=copied,
        )

    def _copy(self, path: Path) -> str:
        """Copy the new checkpoint to `copy_to`, if there is one; what to tell of it."""
        if not self.retention.copy_to:
            return ""
        try:
            return f"copied to {push(path, self.retention.copy_to)}"
        except XGenVideoError as error:
            return f"NOT COPIED: {error}"

    def _scrub(self, path: Path) -> dict[Path, str]:
        """Read back the new checkpoint and one older, in turn, from disk, with all ranks; what is spoilt and why."""
        older = [found for _, found in step_folders(self.folder) if found != path] if self.ranks.rank == 0 else []
        self._turn += 1
        chosen = [path, *(older[self._turn % len(older) :][:1] if older else ())]
        chosen = self.ranks.together(lambda: chosen, lambda all: [all[0]] * self.ranks.size)
        spoilt = {one: reason for one in chosen if (reason := verify_together(one, self.ranks, from_disk=True))}
        self._verified = (self._verified | set(chosen)) - set(spoilt)
        return spoilt
