"""Loader processes: the same batches as without them, whoever dies, hangs or lies."""

import contextlib
import dataclasses
import os
import pickle
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from xgenvideo.config import RunConfig, override
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.batch import Batch
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.loader import Loader
from xgenvideo.data.making import BatchMaker
from xgenvideo.data.shards import write_dataset
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import DataError
from xgenvideo.records import Sample

TIMEOUT = 3


@pytest.fixture
def tokenizer(tiny_dataset: Dataset) -> Tokenizer:
    return tokenizers.load(tiny_dataset.folder / "tokenizer.json")


def with_workers(config: RunConfig, workers: int, pairs: int = 4) -> RunConfig:
    """The config with loader processes."""
    changes = [f"data.workers={workers}", f"data.worker_timeout_seconds={TIMEOUT}", "data.text_tokens=48"]
    return override(config, [*changes, "layout.microbatch_pairs=1", f"train.global_batch_pairs={pairs}"])


@contextlib.contextmanager
def opened(
    dataset: Dataset, tokenizer: Tokenizer, config: RunConfig, rank: int = 0, ranks: int = 1
) -> Iterator[Loader]:
    """A loader, closed afterwards."""
    loader = Loader(dataset, tokenizer, config, rank, ranks)
    try:
        yield loader
    finally:
        loader.close()


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal to the bit."""
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(first).values(), vars(second).values(), strict=True)
    )


def workers_of_this_process() -> list[int]:
    """Processes that the fork server started, the loader's workers."""
    server = multiprocessing_server()
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == server and state != "Z":
                found.append(int(status.parent.name))
    return found


def multiprocessing_server() -> int | None:
    """The process id of the fork server."""
    from multiprocessing import forkserver

    server: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return server


def wait_for_workers(count: int) -> list[int]:
    """The workers, once so many are there."""
    deadline = time.monotonic() + 60
    while len(found := workers_of_this_process()) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced_and_no_batch_is_lost(
    tiny_dataset: Dataset,
    tokenizer: Tokenizer,
    small_config: RunConfig,
    number: signal.Signals,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = with_workers(small_config, 2)
    plain = override(config, ["data.workers=0"])
    with opened(tiny_dataset, tokenizer, plain) as thread, opened(tiny_dataset, tokenizer, config) as processes:
        for _ in range(3):
            assert same(processes.next_batch(), thread.next_batch())
        for worker in wait_for_workers(2):
            os.kill(worker, number)
        for _ in range(12):
            assert same(processes.next_batch(), thread.next_batch())
        assert processes.state() == thread.state()
    assert "its processes are started again" in capfd.readouterr().err


@pytest.mark.slow
def test_fifty_killed_workers_and_changing_ranks_lose_and_repeat_nothing(
    tmp_path: Path, tiny_samples: list[Sample], small_config: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    dice, size, pairs, kills = random.Random(23), 53, 8, 0
    first = tiny_samples[0]
    one = dataclasses.replace(first, jpegs=first.jpegs[:1], pts=first.pts[:1], questions=(), twin=None)
    dataset = write_dataset(tmp_path / "set", [dataclasses.replace(one, key=f"k{i}") for i in range(size)], {})
    words = tokenizers.train_tokenizer(["a"], 260)
    keys: list[str] = []
    state, sizes = None, set()
    while kills < 50:
        ranks = dice.choice((1, 2, 4, 8))
        config = with_workers(small_config, dice.choice((1, 2)), pairs)
        with contextlib.ExitStack() as stack:
            loaders = [stack.enter_context(opened(dataset, words, config, rank, ranks)) for rank in range(ranks)]
            for loader in loaders:
                if state is not None:
                    loader.load_state(state)
            for number in range(dice.randint(6, 12)):
                keys += [key for loader in loaders for key in loader.next_batch().keys]
                if number % 3 == 1 and kills < 50:
                    os.kill(dice.choice(wait_for_workers(1)), signal.SIGKILL)
                    kills += 1
            state, sizes = loaders[0].state(), sizes | {ranks}
            assert all(loader.state() == state for loader in loaders)
    assert sizes == {1, 2, 4, 8}
    assert state["samples_consumed"] == len(keys) > 10 * size
    with opened(dataset, words, with_workers(small_config, 0, pairs)) as undisturbed:
        assert keys == [key for _ in range(len(keys) // pairs) for key in undisturbed.next_batch().keys]
    for start in range(0, len(keys) - size, size):
        assert len(set(keys[start : start + size])) == size, f"epoch {start // size} loses or repeats samples"
    # A worker that dies as its loader closes is never missed; most must have been.
    assert capfd.readouterr().err.count("its processes are started again") > 25


def test_a_state_goes_over_to_another_number_of_workers(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    expected = Loader(tiny_dataset, tokenizer, with_workers(small_config, 0))
    batches = [expected.next_batch() for _ in range(6)]
    with opened(tiny_dataset, tokenizer, with_workers(small_config, 1)) as first:
        assert all(same(first.next_batch(), batch) for batch in batches[:2])
        state = first.state()
    with opened(tiny_dataset, tokenizer, with_workers(small_config, 2)) as second:
        second.load_state(state)
        assert all(same(second.next_batch(), batch) for batch in batches[2:])


def test_what_is_wrong_with_the_data_is_said_as_without_workers(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    for shard in tiny_dataset.folder.glob("train-*.tar"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with (
        opened(tiny_dataset, tokenizer, with_workers(small_config, 1)) as loader,
        pytest.raises(DataError, match="the shard is corrupt"),
    ):
        loader.next_batch()


def test_too_many_bad_samples_stop_the_run_and_are_named(
    tmp_path: Path, tiny_samples: list[Sample], tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    good = [dataclasses.replace(tiny_samples[0], key=f"good{number}", twin=None) for number in range(20)]
    broken = dataclasses.replace(tiny_samples[0], jpegs=(b"bad",) * 6, twin=None)
    bad = [dataclasses.replace(broken, key=f"bad{number}") for number in (1, 2)]
    dataset = write_dataset(tmp_path / "set", [*good, *bad], {})
    config = override(with_workers(small_config, 0, 22), ["data.bad_share=0.05"])
    with opened(dataset, tokenizer, config) as loader:
        loader.next_batch()
        assert loader.last.substituted == 2
        assert {key for key, _ in loader.last.bad} == {"bad1", "bad2"}
        for _ in range(7):
            loader.next_batch()
        with pytest.raises(DataError, match=r"18 of 198 samples cannot be read.*data\.bad_share"):
            loader.next_batch()
    with opened(dataset, tokenizer, override(config, ["data.bad_share=0.2"])) as loader:
        for _ in range(20):
            loader.next_batch()


def test_a_maker_goes_through_pickle(tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig) -> None:
    maker = BatchMaker(tiny_dataset, tokenizer, with_workers(small_config, 0), 0, 1, None)
    again = pickle.loads(pickle.dumps(maker))
    assert same(again.make(8).batch, maker.make(8).batch)
