"""Faults that a rank brings with it: a gradient that is not a number, slow loading, a clock that is wrong."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from xgenvideo.data.loader import Loader


@dataclass(frozen=True)
class Injected:
    """One fault. `kind`: "nan", "slow" or "clock"; `rank`: where; `amount`: the step, seconds a batch, days."""

    kind: str
    rank: int
    amount: float

    @contextlib.contextmanager
    def into(self, rank: int) -> Iterator[None]:
        """The fault, while this is entered on its rank."""
        if rank != self.rank:
            yield
            return
        with {"nan": self._nan, "slow": self._slow, "clock": self._clock}[self.kind]():
            yield

    @contextlib.contextmanager
    def _nan(self) -> Iterator[None]:
        """The gradient of one sample's latents is not a number in the step `amount`, and in no other."""
        from xgenvideo.parallel.visual import VisualWorld

        plain, calls = VisualWorld.learn, [0]

        def learn(world: VisualWorld, video: Any, by_latents: torch.Tensor, by_embedding: torch.Tensor) -> None:
            calls[0] += 1
            spoilt = by_latents * (float("nan") if calls[0] == self.amount else 1.0)
            plain(world, video, spoilt, by_embedding)

        with _replaced(VisualWorld, "learn", learn):
            yield

    @contextlib.contextmanager
    def _slow(self) -> Iterator[None]:
        plain = Loader.next_batch

        def next_batch(loader: Loader) -> Any:
            time.sleep(self.amount)
            return plain(loader)

        with _replaced(Loader, "next_batch", next_batch):
            yield

    @contextlib.contextmanager
    def _clock(self) -> Iterator[None]:
        """The clock of the wall jumps back and forth by `amount` days at every reading."""
        plain, sign = time.time, [1]

        def wrong() -> float:
            sign[0] = -sign[0]
            return plain() + sign[0] * self.amount * 86_400

        with _replaced(time, "time", wrong):
            yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
