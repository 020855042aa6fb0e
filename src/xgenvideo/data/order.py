"""The order of samples in a run: what is read at a global position is a pure function of seed, epoch and dataset."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Order:
    """Every epoch is a permutation of `size` samples, each once; positions count samples over all epochs and ranks.

    With `groups` [size], a number a sample, samples of one group stay next to each other and groups are permuted. With
    `lengths` [size], every `sorted_within` samples in a row are sorted by length: a batch holds clips of like length.
    """

    seed: int
    fingerprint: str
    split: str
    size: int
    groups: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    lengths: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    sorted_within: int = 0
    _epochs: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    def at(self, position: int) -> int:
        """The sample (0 to size - 1) at a global position."""
        epoch, place = divmod(position, self.size)
        return int(self.permutation(epoch)[place])

    def epoch(self, position: int) -> int:
        """The epoch that a global position is in."""
        return position // self.size

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """The samples of an epoch in their order, [size]."""
        # One thread asks, and a batch spans neighbouring epochs: two are worth keeping.
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                self._epochs.pop(min(self._epochs))
            bits = np.random.PCG64(self._number("epoch", epoch))
            order = np.random.Generator(bits).permutation(self.size)
            if self.groups is not None:
                order = _gather(order, self.groups[order])
            if self.lengths is not None and self.sorted_within:
                order = _sort_windows(order, self.lengths[order], self.sorted_within)
            self._epochs[epoch] = order
        return self._epochs[epoch]

    def substitute(self, position: int, attempt: int) -> int:
        """The sample that takes the place of a bad one at a position; `attempt` counts from 1."""
        return self._number("substitute", position, attempt) % self.size

    def window(self, position: int, key: str, frames: int, limit: int) -> int:
        """First frame of the window of `limit` consecutive frames to read from a clip of `frames`; 0 if it fits."""
        return self._number("window", self.epoch(position), key) % max(1, frames - limit + 1)

    def _number(self, *parts: object) -> int:
        """A 256-bit number from the parts, the same on every machine."""
        text = "\n".join(map(str, (self.seed, self.fingerprint, self.split, *parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _gather(samples: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """`samples` with each group moved together to the place of its first one."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return samples[np.argsort(first[inverse], kind="stable")]


def _sort_windows(samples: NDArray[np.int64], lengths: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """`samples` with every `window` of them sorted by length; equal lengths keep their order."""
    windows = np.arange(len(samples)) // window
    return samples[np.lexsort((lengths, windows))]
