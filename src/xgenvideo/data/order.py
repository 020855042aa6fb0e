"""The order of samples in a run: what is read at a global position is a pure function of seed, epoch and dataset.

A long epoch is never held as a list: a keyed bijection says which sample is at a place.
"""

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

LISTED = 2**22  # epochs of at most so many samples are listed (32 MiB), longer ones looked up window by window
WINDOW = 2**14
ROUNDS = 8


@dataclass(frozen=True)
class Order:
    """Every epoch is a permutation of `size` samples, each once; positions count samples over all epochs and ranks.

    With `groups` [size], a number a sample, samples of one group stay next to each other and groups are permuted; they
    need the list, whatever its length. With `lengths` [size] (those over `longest` count as equal), batches of `batch`
    samples hold clips of like length: within every `sorted_within` positions samples are sorted, and the batches that
    this gives come in random order.
    """

    seed: int
    fingerprint: str
    split: str
    size: int
    groups: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    lengths: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)
    longest: int = 2**31
    sorted_within: int = 0
    batch: int = 1
    listed: int = LISTED
    _pieces: dict[tuple[int, int], NDArray[np.int64]] = field(default_factory=dict, repr=False, compare=False)

    def at(self, position: int) -> int:
        """The sample (0 to size - 1) at a global position."""
        epoch, place = divmod(position, self.size)
        if self.size <= self.listed or self.groups is not None:
            return int(self.permutation(epoch)[place])
        number = (place + self._shift(epoch)) // (self.sorted_within or WINDOW)
        return int(self._window(epoch, number)[place - self._start(epoch, number)])

    def epoch(self, position: int) -> int:
        """The epoch that a global position is in."""
        return position // self.size

    def permutation(self, epoch: int) -> NDArray[np.int64]:
        """The samples of a listed epoch in their order, [size]."""
        key = (epoch, -1)
        if key not in self._pieces:
            bits = np.random.PCG64(self._number("epoch", epoch))
            order = np.random.Generator(bits).permutation(self.size)
            if self.groups is not None:
                order = _gather(order, self.groups[order])
            if self.sorted_within:
                starts = [self._start(epoch, number) for number in range(self._windows(epoch) + 1)]
                pieces = [self._sorted(order[a:b], epoch, n) for n, (a, b) in enumerate(pairwise(starts))]
                order = np.concatenate(pieces)
            self._keep(key, order)
        return self._pieces[key]

    def substitute(self, position: int, attempt: int) -> int:
        """The sample that takes the place of a bad one at a position; `attempt` counts from 1."""
        return self._number("substitute", position, attempt) % self.size

    def window(self, position: int, key: str, frames: int, limit: int) -> int:
        """First frame of the window of `limit` consecutive frames to read from a clip of `frames`; 0 if it fits."""
        return self._number("window", self.epoch(position), key) % max(1, frames - limit + 1)

    def _shift(self, epoch: int) -> int:
        """How far windows begin before the epoch does: they and their batches are cut by global position."""
        return epoch * self.size % self.batch

    def _windows(self, epoch: int) -> int:
        return -(-(self.size + self._shift(epoch)) // (self.sorted_within or WINDOW))

    def _start(self, epoch: int, number: int) -> int:
        """The place in the epoch of the first sample of its `number`-th window."""
        return min(self.size, max(0, number * (self.sorted_within or WINDOW) - self._shift(epoch)))

    def _window(self, epoch: int, number: int) -> NDArray[np.int64]:
        """Samples of the `number`-th window of a long epoch."""
        key = (epoch, number)
        if key not in self._pieces:
            places = np.arange(self._start(epoch, number), self._start(epoch, number + 1))
            samples = scattered(places, self.size, self._number("scatter", epoch))
            self._keep(key, self._sorted(samples, epoch, number))
        return self._pieces[key]

    def _sorted(self, samples: NDArray[np.int64], epoch: int, number: int) -> NDArray[np.int64]:
        """A window's samples in batches of like length; without lengths as they are."""
        if self.lengths is None or not self.sorted_within:
            return samples
        places = np.arange(len(samples)) + self._start(epoch, number) + self._shift(epoch)
        batches = (places - number * self.sorted_within) // self.batch
        turns = np.random.Generator(np.random.PCG64(self._number("batches", epoch, number)))
        turn = turns.permutation(-(-self.sorted_within // self.batch))[batches]
        lengths = np.minimum(self.lengths[samples], self.longest)
        found = np.empty_like(samples)
        # Places are visited batch after batch in random order, and dealt samples from the shortest to the longest.
        found[np.argsort(turn, kind="stable")] = samples[np.argsort(lengths, kind="stable")]
        return found

    def _keep(self, key: tuple[int, int], samples: NDArray[np.int64]) -> None:
        # One thread asks, and a batch spans neighbouring pieces: two are worth keeping.
        while len(self._pieces) > 1:
            self._pieces.pop(min(self._pieces))
        self._pieces[key] = samples

    def _number(self, *parts: object) -> int:
        """A 256-bit number from the parts, the same on every machine."""
        return number_of(self.seed, self.fingerprint, self.split, *parts)


def number_of(*parts: object) -> int:
    """A 256-bit number from the parts, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\n".join(map(str, parts)).encode()).digest(), "big")


def scattered(places: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """Where a bijection of 0 to size - 1, chosen by a 256-bit key, sends `places` [N].

    A Feistel network over the next power of 4, walked until it is inside again (cycle walking: Black and Rogaway,
    Ciphers with Arbitrary Finite Domains, 2002). It need not be secret, only mixed, so its rounds are quick ones.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [(key >> 32 * number) & 0xFFFFFFFF for number in range(ROUNDS)]
    found = _feistel(places.astype(np.uint64), half, keys)
    while len(outside := np.flatnonzero(found >= size)):
        found[outside] = _feistel(found[outside], half, keys)
    return found.astype(np.int64)


def _feistel(numbers: NDArray[np.uint64], half: int, keys: list[int]) -> NDArray[np.uint64]:
    """A permutation of the numbers of 2 x `half` bits."""
    bits, mask = np.uint64(half), np.uint64(2**half - 1)
    left, right = numbers >> bits, numbers & mask
    for key in keys:
        # The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
        mixed = (right + np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
    return (left << bits) | right


def _gather(samples: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """`samples` with each group moved together to the place of its first one."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return samples[np.argsort(first[inverse], kind="stable")]
