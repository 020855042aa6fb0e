"""The ranks that save and load together, over a gloo group of their own, so that saving never waits for training.

What they send each other are Python objects, pickled by torch between processes of one job. Nothing that was read
from a disk is unpickled.
"""

import datetime
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch.distributed as dist

from xgenvideo.errors import CheckpointError

Local = TypeVar("Local")
Answer = TypeVar("Answer")
TIMEOUT_SECONDS = 1800.0  # a save waits this long for the slowest rank


class Ranks:
    """This rank, how many there are, and how they agree. Without a process group: one rank, no talk."""

    def __init__(self, rank: int, size: int, group: "dist.ProcessGroup | None") -> None:
        assert (group is None) == (size == 1), f"{size} ranks with group {group}"
        self.rank, self.size, self._group = rank, size, group

    def __repr__(self) -> str:
        return f"Ranks({self.rank} of {self.size})"

    @staticmethod
    def of_process(timeout_seconds: float = TIMEOUT_SECONDS) -> "Ranks":
        """All ranks of this job. Every rank calls this at the same point, as it makes a group."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return Ranks(0, 1, None)
        group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout_seconds))
        return Ranks(dist.get_rank(), dist.get_world_size(), group)

    def together(self, local: Callable[[], Local], lead: Callable[[list[Local]], Sequence[Answer]]) -> Answer:
        """Every rank runs `local`; rank 0 makes of all results, in the order of the ranks, an answer for each rank.

        Raises CheckpointError on every rank when any of them failed: nobody goes on alone.
        """
        done, failed = _attempt(local)
        gathered = self._gather((done, _told(self.rank, failed)))
        answers: list[tuple[Any, str | None]] = []
        if gathered is not None:
            reasons = [reason for _, reason in gathered if reason]
            made, broken = (
                (None, None) if reasons else _attempt(lambda: lead([cast(Local, one) for one, _ in gathered]))
            )
            failed = failed or broken
            if broken is not None:
                reasons = [_told(0, broken) or ""]
            answers = [(made[rank] if made else None, "; ".join(reasons) or None) for rank in range(self.size)]
        answer, reason = self._scatter(answers)
        if reason:
            raise CheckpointError(reason) from failed
        return cast(Answer, answer)

    def _gather(self, value: Any) -> list[Any] | None:
        """On rank 0 the values of all ranks."""
        if self._group is None:
            return [value]
        found: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(value, found, dst=0, group=self._group)
        return found

    def _scatter(self, values: list[Any]) -> Any:
        """To each rank its own of rank 0's values."""
        if self._group is None:
            return values[0]
        found: list[Any] = [None]
        dist.scatter_object_list(found, values if self.rank == 0 else None, src=0, group=self._group)
        return found[0]


def _attempt(work: Callable[[], Local]) -> tuple[Local | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # whatever it is, the other ranks must hear of it instead of waiting for this one
        return None, error


def _told(rank: int, error: Exception | None) -> str | None:
    if error is None:
        return None
    known = isinstance(error, CheckpointError | OSError)
    return f"{error}" if known else f"rank {rank}: {error!r}"
