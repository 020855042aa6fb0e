"""A rank's part of a global batch, as a pure function of its position: what loader threads and processes run."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.data.batch import Batch, Example, collate, memory, padded_length
from xgenvideo.data.blend import SLOTS, blended
from xgenvideo.data.dataset import Dataset, Row
from xgenvideo.data.examples import read_example
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.order import Order
from xgenvideo.data.stitch import Stitched, Stitches, read_stitched, stitch, stitches_of
from xgenvideo.data.text import TokenisedText, pack_tokenised, tokenise
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import DataError, MediaError

SPLIT = "train"
TEXTS_KEPT = 16_384
SUBSTITUTES = 16


@dataclass(frozen=True)
class Made:
    """A batch, how many of its samples stand for others, and those others: key and reason of each."""

    batch: Batch
    substituted: int
    bad: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Part:
    """One dataset of a run: the places of its clips, the order in which its samples are read, and the clips of each
    sample where clips are stitched.
    """

    dataset: Dataset
    places: NDArray[Any]
    frames: NDArray[np.int64]
    order: Order
    stitches: Stitches | None

    def sample(self, choice: int) -> Row | Stitched:
        """A sample by its number among those of the split."""
        clips = np.array([choice]) if self.stitches is None else self.stitches.of(choice)
        places = self.places[clips]
        return stitch([self.dataset.row(number) for number in places["number"].tolist()], places)


class BatchMaker:
    """Makes rank r's part (of R) of the global batch at a position: a pure function of dataset and config.

    With `data.blend` the config names further datasets, which are opened here.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer,
        config: RunConfig,
        rank: int,
        ranks: int,
        cache: FeatureCache | None,
        split: str = SPLIT,
    ) -> None:
        self.dataset, self.tokenizer, self.config, self.cache = dataset, tokenizer, config, cache
        self.rank, self.ranks, self.split = rank, ranks, split
        datasets, self.slots = blended(dataset, config.data.blend, config.train.seed)
        self.parts = tuple(self._part(*each) for each in zip(datasets, self.slots.counts, strict=True))
        self._described = lru_cache(maxsize=TEXTS_KEPT)(self._describe)
        # What cannot be read is not tried again.
        self._bad: dict[tuple[int, int], tuple[str, str]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchMaker, (self.dataset, self.tokenizer, self.config, self.rank, self.ranks, self.cache, self.split)

    def _part(self, dataset: Dataset, slots: int) -> Part:
        data, split = self.config.data, self.split
        # Its part of a batch, which is what is sorted by length.
        pairs = max(1, self.config.train.global_batch_pairs * slots // SLOTS)
        if not dataset.counts.get(split):
            raise DataError(f"{dataset.folder}: has no samples in the split {split!r}, only {sorted(dataset.counts)}")
        places = dataset.places(split)
        stitches = stitches_of(places, data.frames, data.fps) if data.stitch else None
        frames = places["frames"] if stitches is None else stitches.frames
        groups = None
        if data.group_by_source:
            groups = places["source"] if stitches is None else places["source"][stitches.clips[stitches.bounds[:-1]]]
        lengths = frames if data.bucket_batches else None
        seed, size, window = self.config.train.seed, len(frames), data.bucket_batches * pairs
        order = Order(seed, dataset.fingerprint, split, size, groups, lengths, data.frames, window, pairs)
        return Part(dataset, places, frames, order, stitches)

    def epoch(self, position: int) -> int:
        """The epoch of the first dataset after so many positions."""
        return self.parts[0].order.epoch(position * self.slots.counts[0] // SLOTS)

    @property
    def pairs(self) -> int:
        """Samples of this rank's part."""
        pairs = self.config.train.global_batch_pairs
        return pairs * (self.rank + 1) // self.ranks - pairs * self.rank // self.ranks

    @property
    def largest_bytes(self) -> int:
        """Bytes that the frames or features of a batch can need."""
        return math.prod(self._shape(self.config.data.frames)) * self._dtype.itemsize

    def make(self, first: int, buffer: Tensor | None = None) -> Made:
        """This rank's part of the global batch that starts at `first`; its frames or features lie in `buffer` [bytes]
        uint8, where that has enough. Raises DataError for a corrupt shard.
        """
        start = first + self.config.train.global_batch_pairs * self.rank // self.ranks
        end = start + self.pairs
        bad: list[tuple[str, str]] = []
        room = self._room(start, end, buffer)
        found = [self._example(position, bad, row) for position, row in zip(range(start, end), room, strict=True)]
        batch = collate([example for example, _ in found], self.config.data.frames, position=start, room=room)
        return Made(batch, sum(replaced for _, replaced in found), tuple(bad))

    def _room(self, start: int, end: int, buffer: Tensor | None) -> Tensor:
        """Memory for the frames or features of a batch, so that they are made where they stay."""
        shape = self._shape(max(map(self._frames_at, range(start, end))))
        size = math.prod(shape) * self._dtype.itemsize
        if buffer is None or len(buffer) < size:
            return memory(shape, self._dtype)
        return buffer[:size].view(self._dtype).view(shape)

    def _shape(self, longest: int) -> tuple[int, ...]:
        """B F 3 S S, or B F P W, of a batch whose longest clip has so many frames."""
        count = padded_length(min(longest, self.config.data.frames), self.config.data.frames)
        size = self.config.model.vision.image_size
        return self.pairs, count, *((3, size, size) if self.cache is None else self.cache.frame_shape)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.uint8 if self.cache is None else torch.float32

    def _frames_at(self, position: int) -> int:
        number, own = self.slots.at(position)
        return int(self.parts[number].frames[self.parts[number].order.at(own)])

    def _example(self, position: int, bad: list[tuple[str, str]], room: Tensor) -> tuple[Example, bool]:
        """The sample at a global position, or its first substitute that can be read; what cannot goes into `bad`."""
        number, own = self.slots.at(position)
        part, reasons = self.parts[number], []
        choice = part.order.at(own)
        for attempt in range(1, SUBSTITUTES + 1):
            known = (number, choice)
            if known not in self._bad:
                try:
                    return self._read(number, choice, own, room), attempt > 1
                except MediaError as error:
                    self._bad[known] = (self._described(number, choice)[0].key, str(error))
            bad.append(self._bad[known])
            reasons.append(self._bad[known][1])
            choice = part.order.substitute(own, attempt)
        raise DataError(
            f"{part.dataset.folder}: {SUBSTITUTES} samples in a row cannot be read: {'; '.join(reasons[:3])}"
        )

    def _read(self, number: int, choice: int, position: int, room: Tensor) -> Example:
        """A sample of the `number`-th dataset, which is read at `position` of that dataset's order."""
        part = self.parts[number]
        sample, tokenised = self._described(number, choice)
        text = pack_tokenised(tokenised, self.config.data.text_tokens, part.order.epoch(position))
        if isinstance(sample, Stitched):
            return read_stitched(part.dataset, sample, text, self.config, self.cache, room)
        first = part.order.window(position, sample.key, sample.frames, self.config.data.frames)
        return read_example(part.dataset, sample, text, self.config, self.cache, first, room)

    def _describe(self, number: int, choice: int) -> tuple[Row | Stitched, TokenisedText]:
        sample = self.parts[number].sample(choice)
        return sample, tokenise(sample, self.tokenizer, self.config.data.text_tokens)
