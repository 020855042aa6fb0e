"""Writing for many requests at once: what waits together is written together, in one thread, until nobody waits for it.

Texts about videos of equally many windows share a batch (their latents have one shape). A text that ends, or whose
client has gone, leaves its batch at once; one that arrives meanwhile goes with the next.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from xgenvideo.data.decoders import Stopped
from xgenvideo.infer.generate import Draw, Speech, steps
from xgenvideo.infer.release import Release


@dataclass(frozen=True)
class Ended:
    """A text is whole: why it ended, and how many tokens it has."""

    reason: Literal["stop", "length"]
    tokens: int


Word = str | Ended | Exception


@dataclass(eq=False, repr=False)
class Job:
    """One text to write. latents [1 N Dr]; `say` is called from the engine's thread with each piece, then the end."""

    ids: Sequence[int]
    latents: Tensor
    max_tokens: int
    draw: Draw
    say: Callable[[Word], None]
    stop: threading.Event = field(default_factory=threading.Event)


class Engine:
    """One thread that owns the writing. `turn` is held for each step, so that others may use the model in between."""

    def __init__(
        self, release: Release, batch: int, turn: threading.Lock, batched: Callable[[int], None] = lambda size: None
    ) -> None:
        """`batched` is told the size of each batch."""
        self._release, self._batch, self._turn, self._batched = release, batch, turn, batched
        self._waiting: list[Job] = []
        self._wake = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name="xgv-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many texts wait for their batch."""
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Queue one text."""
        with self._wake:
            self._waiting.append(job)
            self._wake.notify()

    def close(self) -> None:
        """End the thread; what was under way is told Stopped."""
        with self._wake:
            self._open = False
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._take():
            self._batched(len(batch))
            try:
                self._write(batch)
            except Exception as error:  # whatever went wrong is these requests' to hear; the next batch may be sound
                for job in batch:
                    job.say(error)
        for job in self._waiting:
            job.say(Stopped())

    def _take(self) -> list[Job]:
        """The text that has waited longest and those that can be written with it; none at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._waiting or not self._open)
            if not self._open:
                return []
            shape = self._waiting[0].latents.shape
            batch = [job for job in self._waiting if job.latents.shape == shape][: self._batch]
            self._waiting = [job for job in self._waiting if job not in batch]
            return batch

    def _write(self, batch: Sequence[Job]) -> None:
        release, going = self._release, dict(enumerate(batch))
        speeches = [Speech(release.tokenizer) for _ in batch]
        written = steps(
            release.model,
            release.tokenizer,
            torch.cat([job.latents for job in batch]),
            [job.ids for job in batch],
            [job.max_tokens for job in batch],
            [job.draw for job in batch],
            lambda row: batch[row].stop.is_set() or not self._open,
        )
        while going:
            with self._turn:
                chosen = dict(next(written, ()))
            for row, token in chosen.items():
                if piece := speeches[row].add(token):
                    batch[row].say(piece)
            full = {row for row in chosen if len(speeches[row].ids) == batch[row].max_tokens}
            for row in [row for row in going if row not in chosen or row in full]:
                self._end(going.pop(row), speeches[row], "length" if row in full else "stop")

    def _end(self, job: Job, speech: Speech, reason: Literal["stop", "length"]) -> None:
        if job.stop.is_set() or not self._open:
            job.say(Stopped())
            return
        if piece := speech.end():
            job.say(piece)
        job.say(Ended(reason, len(speech.ids)))
