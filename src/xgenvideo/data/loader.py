"""Batches for training, resumable to the sample, and one pass over a split for evaluation.

A batch is a pure function of its global position, so prefetched work is never part of the state.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from xgenvideo.config import RunConfig
from xgenvideo.data.batch import Batch, Example, collate
from xgenvideo.data.buffers import make_buffers
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.examples import read_example
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.making import BatchMaker, Made
from xgenvideo.data.text import pack
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.data.workers import Workers
from xgenvideo.errors import ConfigError, DataError, MediaError

VERSION = 4
PREFETCH_BATCHES = 2
KEPT_BATCHES = PREFETCH_BATCHES + 2  # those ahead, the one in use, and the one before it, until it is let go
FEWEST_BAD = 16  # so many bad samples never stop a run, however small it is


@dataclass(frozen=True)
class Share:
    """What this rank read last: samples `keys` from global `position` on, `substituted` of them instead of `bad` ones,
    which are given by key and reason.
    """

    position: int
    keys: tuple[str, ...]
    substituted: int
    bad: tuple[tuple[str, str], ...] = ()


class Loader:
    """The `train` split in seeded epochs; rank r of R takes its part of every global batch.

    A sample with an undecodable frame is replaced by another, the same one in every run, and counted in `substituted`.
    A corrupt shard is not replaced: it raises DataError. With a FeatureCache no JPEG is decoded. `pinned`: batches come
    in page-locked memory, for a GPU.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokenizer: Tokenizer,
        config: RunConfig,
        rank: int = 0,
        ranks: int = 1,
        cache: FeatureCache | None = None,
        pinned: bool = False,
    ) -> None:
        self._check(dataset, tokenizer, config, rank, ranks, cache)
        self.dataset, self.tokenizer, self.config, self.cache = dataset, tokenizer, config, cache
        self.rank, self.ranks, self.pinned = rank, ranks, pinned
        self.samples_consumed = 0
        self.substituted = 0
        self.last = Share(0, (), 0)
        self._read = 0
        maker = BatchMaker(dataset, tokenizer, config, rank, ranks, cache)
        self._maker = maker
        self._workers = Workers(maker, KEPT_BATCHES) if config.data.workers else None
        self._buffers = make_buffers(KEPT_BATCHES, 0 if config.data.workers else maker.largest_bytes)
        self._buffers.close_file()
        # One thread: the batches come in order, and `Order` keeps epochs without a lock.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
        self._ahead: deque[Future[Made]] = deque()

    @staticmethod
    def _check(
        dataset: Dataset, tokenizer: Tokenizer, config: RunConfig, rank: int, ranks: int, cache: FeatureCache | None
    ) -> None:
        pairs = config.train.global_batch_pairs
        if not 1 <= ranks <= pairs:
            raise ConfigError("train.global_batch_pairs", pairs, f"must be at least the {ranks} ranks that read it")
        assert 0 <= rank < ranks, f"rank {rank} of {ranks}"
        check_inputs(dataset, tokenizer, config, cache)

    def __repr__(self) -> str:
        return f"Loader(rank={self.rank}/{self.ranks}, samples_consumed={self.samples_consumed}, {self.dataset})"

    @property
    def epoch(self) -> int:
        """The epoch of the next sample; with data.blend that of the dataset in data.shards."""
        return self._maker.epoch(self.samples_consumed)

    @property
    def epoch_samples(self) -> int:
        """Samples of an epoch; 0 with data.blend, where each dataset has epochs of its own."""
        return self._maker.parts[0].order.size if len(self._maker.parts) == 1 else 0

    def next_batch(self) -> Batch:
        """This rank's part of the next global batch. Raises DataError for a corrupt shard."""
        pairs = self.config.train.global_batch_pairs
        while len(self._ahead) < PREFETCH_BATCHES:
            first = self.samples_consumed + len(self._ahead) * pairs
            self._ahead.append(self._thread.submit(self._make, first))
        try:
            made = self._ahead.popleft().result()
        except BaseException:
            self._forget()
            raise
        self.samples_consumed += pairs
        self.last = Share(made.batch.position, made.batch.keys, made.substituted, made.bad)
        self._count(made)
        return made.batch

    def _make(self, first: int) -> Made:
        made = self._workers.make(first) if self._workers else self._maker.make(first, self._buffers.take())
        return replace(made, batch=made.batch.pinned()) if self.pinned else made

    def _count(self, made: Made) -> None:
        """Raise DataError when more than data.bad_share of what was read stands for samples that cannot be read."""
        self.substituted += made.substituted
        self._read += len(made.batch)
        share = self.config.data.bad_share
        if self.substituted > max(FEWEST_BAD, share * self._read):
            told = f"{self.substituted} of {self._read} samples cannot be read, the last: {made.bad[-1:]}"
            cure = "mend the dataset (`xgv audit DATASET` reads all of it), or allow more with data.bad_share"
            raise DataError(f"{self.dataset.folder}: {told}; {cure}")

    def skip(self, samples: int) -> int:
        """Pass over the next `samples` of the global order, in whole batches; returns the position of the first."""
        position = self.samples_consumed
        assert samples % self.config.train.global_batch_pairs == 0, f"{samples} samples are no whole batches"
        self._forget()
        self.samples_consumed += samples
        return position

    def state(self) -> dict[str, Any]:
        """Where the batch last returned ends, as JSON values; the same on every rank."""
        sorted_within = self._maker.parts[0].order.sorted_within
        return {
            "version": VERSION,
            "samples_consumed": self.samples_consumed,
            "epoch": self.epoch,
            "seed": self.config.train.seed,
            "global_batch_pairs": self.config.train.global_batch_pairs,
            "fingerprint": self.dataset.fingerprint,
            "group_by_source": self.config.data.group_by_source,
            "blend": self._maker.slots.state() if self.config.data.blend else {},
            "sorted_within": sorted_within,
            "stitched": self.config.data.stitch,
            "sorted_frames": self.config.data.frames if sorted_within or self.config.data.stitch else 0,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on after a state of this dataset and seed, from any number of ranks. Raises DataError: what differs."""
        own = self.state()
        missing = sorted(set(own) - set(state))
        if missing:
            raise DataError(f"loader state has no {', '.join(missing)}; it is not a state of this program")
        cures = {
            "version": "resume with the program that saved it",
            "seed": "resume with the same train.seed",
            "global_batch_pairs": "resume with the same train.global_batch_pairs",
            "fingerprint": "resume with the same dataset, or start a new run",
            "blend": "resume with the same data.blend (slots of 1,024 by fingerprint), or samples would repeat",
            "group_by_source": "resume with the same data.group_by_source, or samples would repeat",
            "sorted_within": "resume with the same data.bucket_batches and batch size, or samples would repeat",
            "stitched": "resume with the same data.stitch, or samples would repeat",
            "sorted_frames": "resume with the same data.frames, or samples would repeat",
        }
        for name, cure in cures.items():
            if state[name] != own[name]:
                raise DataError(f"loader state: {name} is {state[name]!r}, this run has {own[name]!r}; {cure}")
        consumed = state["samples_consumed"]
        if isinstance(consumed, bool) or not isinstance(consumed, int) or consumed < 0:
            raise DataError(f"loader state: samples_consumed is {consumed!r}, it must be 0 or more samples")
        self._forget()
        self.samples_consumed = consumed

    def close(self) -> None:
        """Stop the prefetch thread; the loader cannot be used after this."""
        self._forget()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._workers:
            self._workers.close()

    def _forget(self) -> None:
        """Drop what was prefetched."""
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()


def check_inputs(dataset: Dataset, tokenizer: Tokenizer, config: RunConfig, cache: FeatureCache | None) -> None:
    """Refuse a tokenizer larger than the model's vocabulary, and features of another dataset or image size."""
    if tokenizer.size > config.model.decoder.vocab:
        rule = f"must be at least the {tokenizer.size} tokens of the tokenizer"
        raise ConfigError("model.decoder.vocab", config.model.decoder.vocab, rule)
    if cache is None:
        return
    found, expected = (cache.fingerprint, cache.image_size), (dataset.fingerprint, config.model.vision.image_size)
    if found != expected:
        raise DataError(
            f"{cache!r}: is of (dataset, image size) {found}, this run needs {expected}; build it for this run"
        )


def read_once(
    dataset: Dataset,
    tokenizer: Tokenizer,
    config: RunConfig,
    split: str,
    batch_pairs: int,
    cache: FeatureCache | None = None,
) -> Iterator[Batch]:
    """Every readable sample of a split once, in the order written; the last batch may be short.

    Of a long clip the first `config.data.frames` frames are read. A sample whose frames are no pictures is left out.
    Raises DataError for a corrupt shard.
    """
    check_inputs(dataset, tokenizer, config, cache)
    examples: list[Example] = []
    read = 0
    for row in dataset.rows(split):
        text = pack(row, tokenizer, config.data.text_tokens)
        try:
            examples.append(read_example(dataset, row, text, config, cache))
        except MediaError:
            continue
        if len(examples) == batch_pairs:
            yield collate(examples, config.data.frames, position=read)
            examples, read = [], read + batch_pairs
    if examples:
        yield collate(examples, config.data.frames, position=read)
