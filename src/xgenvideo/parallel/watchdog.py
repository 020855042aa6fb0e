"""Ends a job that hangs, and says which rank hung in which phase, instead of 512 ranks waiting for one.

Every rank tells the job's store now and then where it is. When a rank has been in its step for too long, the one that
does not tell any more has hung or is gone; when all still tell, it is the one that has come the least far. A process
that gives no sign of life cannot end itself, so a rank of the same machine kills it: launchers wait for it otherwise.
"""

import contextlib
import json
import os
import platform
import signal
import sys
import threading
import time
from types import TracebackType
from typing import Any

import torch.distributed as dist

from xgenvideo.parallel.phases import SAVING, Phases
from xgenvideo.parallel.world import World

EXIT_HUNG = 76
BEATS_A_TIMEOUT = 20
LONGEST_BEAT_SECONDS = 5.0
NEVER_TOLD = b'{"beat": 0, "step": 0, "phase": "start", "at": 0}'
SAVING_STEPS = 3  # waiting for storage may take so many times as long as a step


class Watchdog:
    """While entered, a thread that ends this process with EXIT_HUNG once a step takes longer than `step_seconds`.

    Until the first step is done it allows `startup_seconds`: features, compilation and the first collectives are slow.
    Waiting for a checkpoint to be written is no part of a step, and may take SAVING_STEPS times as long.
    """

    def __init__(self, world: World, startup_seconds: float, step_seconds: float) -> None:
        self.world, self.startup_seconds, self.step_seconds = world, startup_seconds, step_seconds
        self._beat_seconds = min(LONGEST_BEAT_SECONDS, min(startup_seconds, step_seconds) / BEATS_A_TIMEOUT)
        # A connection of its own: the job's may be held by a thread that waits in it.
        self._store: Any = dist.distributed_c10d.PrefixStore("watchdog", _store().clone()) if world.size > 1 else None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._at, self._since, self._beats = (-1, 0, False), time.monotonic(), 0

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(self._beat_seconds):
            phases = self.world.phases
            at = (phases.step, phases.held_out, phases.name == SAVING)
            if at != self._at:
                self._at, self._since = at, time.monotonic()
            self._tell(phases)
            allowed = self.step_seconds if phases.step > 0 else self.startup_seconds
            allowed *= SAVING_STEPS if phases.name == SAVING else 1
            took = time.monotonic() - self._since
            if took > allowed:
                self._end(phases, took)

    def _tell(self, phases: Phases) -> None:
        """Write down where this rank is."""
        if self._store is None:
            return
        self._beats += 1
        place = {"beat": self._beats, "step": phases.step, "phase": phases.name}
        place |= {"at": phases.order.index(phases.name), "host": platform.node(), "pid": os.getpid()}
        try:
            self._store.set(str(self.world.rank), json.dumps(place))
        except RuntimeError:  # the store is gone with its process; the timeout below still counts
            self._store = None

    def _end(self, phases: Phases, took: float) -> None:
        rank = self.world.rank
        hung = self._hung() or f"rank {rank} in phase {phases.name!r} of step {phases.step + 1}"
        cure = "the job ends here; the same command goes on from the newest checkpoint"
        setting = "train.step_timeout_seconds" if phases.step > 0 else "train.startup_timeout_seconds"
        told = f"no step for {took:.0f} s ({setting}), hung: {hung}; {cure}"
        # One write: ranks share a terminal, and `print` of an unbuffered process writes the line's end apart.
        sys.stderr.write(f"xgv train: rank {rank}: {told}\n")
        sys.stderr.flush()
        # The others still read the store, which one of the processes keeps.
        time.sleep(2 * self._beat_seconds)
        os._exit(EXIT_HUNG)

    def _hung(self) -> str:
        """The ranks that no longer tell where they are, else those that have come the least far."""
        before = self._places()
        time.sleep(3 * self._beat_seconds)
        self._tell(self.world.phases)
        after = self._places()
        silent = [rank for rank in before if after.get(rank, before[rank])["beat"] == before[rank]["beat"]]
        silent = [rank for rank in silent if rank != self.world.rank]
        for rank in silent:
            self._kill(before[rank])
        if silent:
            return ", ".join(_named(rank, before[rank], "gives no sign of life") for rank in silent)
        least = min(((place["step"], place["at"]) for place in after.values()), default=None)
        behind = [rank for rank, place in after.items() if (place["step"], place["at"]) == least]
        return ", ".join(_named(rank, after[rank], "") for rank in behind)

    def _kill(self, place: dict[str, Any]) -> None:
        """End a silent rank of this machine."""
        if place.get("host") == platform.node() and "pid" in place:
            with contextlib.suppress(OSError):
                os.kill(place["pid"], signal.SIGKILL)

    def _places(self) -> dict[int, dict[str, Any]]:
        """What the ranks told last; one that never told is before its first step."""
        if self._store is None:
            return {}
        store, keys = self._store, [str(rank) for rank in range(self.world.size)]
        try:
            # All ranks ask at once: a question for each rank would keep the store busy for so long that a rank seems
            # silent for it.
            if store.check(keys):
                said = store.multi_get(keys)
            else:
                said = [store.get(key) if store.check([key]) else NEVER_TOLD for key in keys]
        except RuntimeError:
            self._store = None
            return {}
        return {rank: json.loads(place) for rank, place in enumerate(said)}


def _named(rank: int, place: dict[str, Any], how: str) -> str:
    where = f"rank {rank} in phase {place['phase']!r} of step {place['step'] + 1}"
    return f"{where} ({how})" if how else where


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
