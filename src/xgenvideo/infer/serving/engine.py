"""Writing for many requests at once: what waits together is written together, in one thread, until nobody waits for it.

Texts about videos of equally many windows share a batch (their latents have one shape). A text that ends, or whose
client has gone, leaves its batch at once. A few batches take turns, token by token, so that a short text that arrives
later does not wait for a long one; while all of them are busy, those that wait gather.
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


# Under way at once. More would split what waits into batches of one.
BATCHES = 4
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
        going: list[Batch] = []
        while self._open:
            jobs = self._take(wait=not going) if len(going) < BATCHES else []
            if jobs:
                self._batched(len(jobs))
                going.append(Batch(self._release, jobs))
            for batch in going:
                with self._turn:
                    batch.step()
            going = [batch for batch in going if batch.going]
        for job in (*self._waiting, *(job for batch in going for job in batch.going.values())):
            job.say(Stopped())

    def _take(self, wait: bool) -> list[Job]:
        """The text that has waited longest and those that can be written with it."""
        with self._wake:
            if wait:
                self._wake.wait_for(lambda: self._waiting or not self._open)
            if not self._waiting or not self._open:
                return []
            shape = self._waiting[0].latents.shape
            batch = [job for job in self._waiting if job.latents.shape == shape][: self._batch]
            self._waiting = [job for job in self._waiting if job not in batch]
            return batch


class Batch:
    """Texts that are written together. `going`: those that have not ended, by their row."""

    def __init__(self, release: Release, jobs: Sequence[Job]) -> None:
        self.going = dict(enumerate(jobs))
        self._speeches = [Speech(release.tokenizer) for _ in jobs]
        self._written = steps(
            release.model,
            release.tokenizer,
            torch.cat([job.latents for job in jobs]),
            [job.ids for job in jobs],
            [job.max_tokens for job in jobs],
            [job.draw for job in jobs],
            lambda row: jobs[row].stop.is_set(),
        )

    def step(self) -> None:
        """One token for each text; whatever goes wrong is these texts' to hear, the next batch may be sound."""
        try:
            chosen = dict(next(self._written, ()))
        except Exception as error:
            for job in self.going.values():
                job.say(error)
            self.going = {}
            return
        for row, token in chosen.items():
            if piece := self._speeches[row].add(token):
                self.going[row].say(piece)
        for row in list(self.going):
            full = len(self._speeches[row].ids) == self.going[row].max_tokens
            if full or row not in chosen:
                self._end(self.going.pop(row), self._speeches[row], "length" if full else "stop")

    def _end(self, job: Job, speech: Speech, reason: Literal["stop", "length"]) -> None:
        if job.stop.is_set():
            job.say(Stopped())
            return
        if piece := speech.end():
            job.say(piece)
        job.say(Ended(reason, len(speech.ids)))
