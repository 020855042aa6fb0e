"""A rank's part of a global batch, as a pure function of its position: what loader threads and processes run."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.data.batch import Batch, Example, collate, padded_length
from xgenvideo.data.dataset import Dataset, Row
from xgenvideo.data.examples import read_example
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.order import Order
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


class BatchMaker:
    """Makes rank r's part (of R) of the global batch at a position: a pure function of dataset and config."""

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer,
        config: RunConfig,
        rank: int,
        ranks: int,
        cache: FeatureCache | None,
    ) -> None:
        self.dataset, self.tokenizer, self.config, self.cache = dataset, tokenizer, config, cache
        self.rank, self.ranks = rank, ranks
        self._numbers = dataset.numbers(SPLIT)
        self._frames = dataset.frame_counts(SPLIT)
        self.order = self._ordered()
        self._described = lru_cache(maxsize=TEXTS_KEPT)(self._describe)
        # What cannot be read is not tried again.
        self._bad: dict[int, tuple[str, str]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchMaker, (self.dataset, self.tokenizer, self.config, self.rank, self.ranks, self.cache)

    def _ordered(self) -> Order:
        data, dataset = self.config.data, self.dataset
        groups = dataset.sources(SPLIT) if data.group_by_source else None
        pairs = self.config.train.global_batch_pairs
        lengths = np.minimum(self._frames, data.frames) if data.bucket_batches else None
        seed, size, window = self.config.train.seed, len(self._numbers), data.bucket_batches * pairs
        return Order(seed, dataset.fingerprint, SPLIT, size, groups, lengths, window, pairs)

    def make(self, first: int) -> Made:
        """This rank's part of the global batch that starts at `first`. Raises DataError for a corrupt shard."""
        pairs = self.config.train.global_batch_pairs
        start, end = (first + pairs * rank // self.ranks for rank in (self.rank, self.rank + 1))
        bad: list[tuple[str, str]] = []
        room = self._room(start, end)
        rows = [None] * (end - start) if room is None else list(room)
        found = [self._example(position, bad, row) for position, row in zip(range(start, end), rows, strict=True)]
        batch = collate([example for example, _ in found], self.config.data.frames, position=start, room=room)
        return Made(batch, sum(replaced for _, replaced in found), tuple(bad))

    def _room(self, start: int, end: int) -> Tensor | None:
        """Memory for the frames of a batch [B F 3 S S], so that they are decoded where they stay; none for features."""
        if self.cache is not None:
            return None
        longest = max(int(self._frames[self.order.at(position)]) for position in range(start, end))
        count = padded_length(min(longest, self.config.data.frames), self.config.data.frames)
        size = self.config.model.vision.image_size
        return torch.empty((end - start, count, 3, size, size), dtype=torch.uint8)

    def _example(self, position: int, bad: list[tuple[str, str]], room: Tensor | None) -> tuple[Example, bool]:
        """The sample at a global position, or its first substitute that can be read; what cannot goes into `bad`."""
        choice, reasons = self.order.at(position), []
        for attempt in range(1, SUBSTITUTES + 1):
            if choice not in self._bad:
                try:
                    return self._read(choice, position, room), attempt > 1
                except MediaError as error:
                    self._bad[choice] = (self._described(choice)[0].key, str(error))
            bad.append(self._bad[choice])
            reasons.append(self._bad[choice][1])
            choice = self.order.substitute(position, attempt)
        raise DataError(
            f"{self.dataset.folder}: {SUBSTITUTES} samples in a row cannot be read: {'; '.join(reasons[:3])}"
        )

    def _read(self, choice: int, position: int, room: Tensor | None) -> Example:
        row, tokenised = self._described(choice)
        text = pack_tokenised(tokenised, self.config.data.text_tokens, self.order.epoch(position))
        first = self.order.window(position, row.key, row.frames, self.config.data.frames)
        return read_example(self.dataset, row, text, self.config, self.cache, first, room)

    def _describe(self, choice: int) -> tuple[Row, TokenisedText]:
        row = self.dataset.row(int(self._numbers[choice]))
        return row, tokenise(row, self.tokenizer, self.config.data.text_tokens)
