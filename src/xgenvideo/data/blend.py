"""Several datasets in one order, each with its share: which one a global position reads is a pure function too.

`data.blend=PATH=0.3,OTHER=0.1` reads 30 % of all samples from PATH, 10 % from OTHER, the rest from `data.shards`.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xgenvideo.data.dataset import Dataset, open_dataset
from xgenvideo.data.order import number_of, scattered
from xgenvideo.errors import ConfigError

SLOTS = 1024


@dataclass(frozen=True)
class Slots:
    """Of every SLOTS positions in a row, `counts[i]` read dataset i, in an order of each block's own.

    Every dataset is read in its own order and its own epochs, as if it were alone.
    """

    seed: int
    fingerprints: tuple[str, ...]
    counts: tuple[int, ...]
    _blocks: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def at(self, position: int) -> tuple[int, int]:
        """Which dataset a global position reads, and the position in that dataset's own order."""
        if len(self.counts) == 1:
            return 0, position
        block, place = divmod(position, SLOTS)
        which, before = self._block(block)
        number = int(which[place])
        return number, block * self.counts[number] + int(before[place])

    def _block(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each position of a block: its dataset, and how many positions before it read the same one."""
        if block not in self._blocks:
            # A batch spans neighbouring blocks; larger ones than two blocks pass each once, in order.
            while len(self._blocks) > 1:
                self._blocks.pop(min(self._blocks))
            which = np.repeat(np.arange(len(self.counts)), self.counts)
            key = number_of(self.seed, *self.fingerprints, *self.counts, "blend", block)
            which = which[scattered(np.arange(SLOTS), SLOTS, key)]
            before = np.empty_like(which)
            for number, count in enumerate(self.counts):
                before[which == number] = np.arange(count)
            self._blocks[block] = (which, before)
        return self._blocks[block]

    def state(self) -> dict[str, int]:
        """How many of SLOTS positions each dataset has, by fingerprint: what a resume compares."""
        return dict(zip(self.fingerprints, self.counts, strict=True))


def shares_of(text: str) -> dict[str, float]:
    """`PATH=SHARE,PATH=SHARE` as numbers. Raises ConfigError."""
    rule = f"must be PATH=SHARE,PATH=SHARE, each path once, shares of at least 1/{SLOTS}"
    shares: dict[str, float] = {}
    for part in text.split(",") if text else ():
        path, _, share = part.rpartition("=")
        try:
            number = float(share)
        except ValueError as error:
            raise ConfigError("data.blend", text, rule) from error
        if not path or path in shares or not number >= 1 / SLOTS:
            raise ConfigError("data.blend", text, rule)
        shares[path] = number
    if not sum(shares.values()) <= 1 - 1 / SLOTS:
        raise ConfigError("data.blend", text, "must have shares of less than 1 in all: data.shards has the rest")
    return shares


def blended(dataset: Dataset, text: str, seed: int) -> tuple[tuple[Dataset, ...], Slots]:
    """The datasets of a run, `dataset` first, and their slots. Raises ConfigError, DataError for one not there."""
    shares = shares_of(text)
    datasets = (dataset, *(open_dataset(Path(path)) for path in shares))
    fingerprints = tuple(each.fingerprint for each in datasets)
    if len(set(fingerprints)) < len(fingerprints):
        raise ConfigError("data.blend", text, "must name each dataset once, and not data.shards")
    others = [round(share * SLOTS) for share in shares.values()]
    return datasets, Slots(seed, fingerprints, (SLOTS - sum(others), *others))
