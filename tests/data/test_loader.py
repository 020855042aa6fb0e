"""The loader: each sample once an epoch whatever the ranks and stops; a batch depends on its position alone."""

import collections
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xgenvideo.config import RunConfig, override
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.batch import Batch
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.loader import Loader, read_once
from xgenvideo.data.order import WINDOW, Order, scattered
from xgenvideo.data.shards import write_dataset
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError, DataError
from xgenvideo.records import Sample


@pytest.fixture
def tokenizer(tiny_dataset: Dataset) -> Tokenizer:
    return tokenizers.load(tiny_dataset.folder / "tokenizer.json")


def with_pairs(config: RunConfig, pairs: int, *changes: str) -> RunConfig:
    """The config with another global batch, plain order."""
    plain = ["layout.microbatch_pairs=1", "data.group_by_source=false", "data.text_tokens=48"]
    return override(config, [*plain, f"train.global_batch_pairs={pairs}", *changes])


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal to the bit."""
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(first).values(), vars(second).values(), strict=True)
    )


@pytest.fixture(scope="module")
def small_sets(tmp_path_factory: pytest.TempPathFactory, tiny_samples: list[Sample]) -> list[Dataset]:
    """Datasets of 1 to 9 samples of one frame."""
    folder, first = tmp_path_factory.mktemp("sets"), tiny_samples[0]
    one = dataclasses.replace(first, jpegs=first.jpegs[:1], pts=first.pts[:1], questions=())
    samples = [dataclasses.replace(one, key=f"k{i}", source=f"s{i // 2}") for i in range(9)]
    return [write_dataset(folder / str(size), samples[:size], {}) for size in range(1, 10)]


@settings(max_examples=25, deadline=None)
@given(
    size=st.integers(1, 9),
    pairs=st.sampled_from([8, 11, 16]),
    stages=st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(1, 4)), min_size=1, max_size=4),
    order=st.sampled_from([(), ("data.group_by_source=true",), ("data.bucket_batches=2",)]),
)
def test_each_sample_once_an_epoch_over_stops_and_ranks(
    small_sets: list[Dataset],
    small_config: RunConfig,
    size: int,
    pairs: int,
    stages: list[tuple[int, int]],
    order: tuple[str, ...],
) -> None:
    dataset, config = small_sets[size - 1], with_pairs(small_config, pairs, *order)
    words = tokenizers.train_tokenizer(["a"], 260)
    keys: list[str] = []
    state = None
    for ranks, batches in stages:
        loaders = [Loader(dataset, words, config, rank, ranks) for rank in range(ranks)]
        for loader in loaders:
            if state is not None:
                loader.load_state(state)
        for _ in range(batches):
            read = [loader.next_batch() for loader in loaders]
            assert [batch.position for batch in read] == [len(keys) + rank * pairs // ranks for rank in range(ranks)]
            keys += [key for batch in read for key in batch.keys]
        states = {json.dumps(loader.state()) for loader in loaders}
        assert len(states) == 1, "ranks disagree"
        state = json.loads(states.pop())
        for loader in loaders:
            loader.close()
    assert state is not None
    assert state["samples_consumed"] == len(keys)
    for start in range(0, len(keys), size):
        counts = collections.Counter(keys[start : start + size])
        assert max(counts.values()) == 1, f"a sample twice in one epoch: {counts}"
    assert len(set(keys)) == min(size, len(keys))


@pytest.mark.slow
def test_fifty_kills_with_changing_ranks_lose_and_repeat_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("killed_loader.py")), str(tmp_path), "50"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["kills"] == 50
    assert found["sizes_that_read"] == [1, 2, 4, 8]
    assert found["epochs_finished"] > 3, found
    assert found["batches_read_again"] > 0, "no kill fell between reading and saving: the runs prove nothing"


def test_epochs_differ_and_so_do_seeds() -> None:
    order = Order(0, "f", "train", 50)
    epochs = [order.permutation(epoch).tolist() for epoch in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert order.permutation(0).tolist() == epochs[0]
    for other in (Order(1, "f", "train", 50), Order(0, "g", "train", 50), Order(0, "f", "heldout", 50)):
        assert other.permutation(0).tolist() != epochs[0]


def test_the_order_is_the_same_on_every_machine() -> None:
    assert Order(7, "abc", "train", 8).permutation(3).tolist() == [4, 3, 7, 2, 5, 6, 1, 0]
    assert Order(7, "abc", "train", 8).substitute(11, 1) == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 9))
def test_groups_stay_together(groups: list[int], epoch: int) -> None:
    order = Order(0, "f", "train", len(groups), np.array(groups)).permutation(epoch)
    assert sorted(order) == list(range(len(groups)))
    runs = [group for at, group in enumerate(np.array(groups)[order]) if at == 0 or group != groups[order[at - 1]]]
    assert len(runs) == len(set(groups))


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=90),
    batch=st.integers(1, 7),
    batches=st.integers(1, 6),
    epoch=st.integers(0, 3),
    listed=st.sampled_from([0, 100]),
)
def test_batches_hold_like_lengths_and_come_mixed(
    lengths: list[int], batch: int, batches: int, epoch: int, listed: int
) -> None:
    size, window = len(lengths), batch * batches
    order = Order(0, "f", "train", size, lengths=np.array(lengths), sorted_within=window, batch=batch, listed=listed)
    positions = range(epoch * size, (epoch + 1) * size)
    found = {position: order.at(position) for position in positions}
    assert sorted(found.values()) == list(range(size)), "not each sample once an epoch"
    begin = epoch * size // batch * batch
    for start in range(begin, (epoch + 1) * size, window):
        parts = [
            sorted(lengths[found[p]] for p in range(at, min(at + batch, start + window)) if p in found)
            for at in range(start, start + window, batch)
        ]
        parts = sorted(part for part in parts if part)
        # Sorted by their shortest, no two batches of one window overlap in length.
        assert all(left[-1] <= right[0] for left, right in zip(parts, parts[1:], strict=False))


def test_long_batches_come_at_any_time_of_a_window() -> None:
    lengths = np.arange(8000) % 64
    order = Order(0, "f", "train", 8000, lengths=lengths, sorted_within=160, batch=8)
    means = lengths[order.permutation(0)].reshape(50, 20, 8).mean(2)
    assert means.std(1).mean() > 15, "lengths are not sorted into batches"
    assert means.mean(0).std() < 8, "a batch's place in its window tells its length"


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), key=st.integers(0, 2**256 - 1))
def test_a_long_epoch_is_a_bijection_of_any_size(size: int, key: int) -> None:
    places = np.arange(size)
    assert np.array_equal(np.sort(scattered(places, size, key)), places)


def test_a_long_epoch_is_well_mixed_and_the_same_on_every_machine() -> None:
    size = 150_000_000
    order = Order(7, "abc", "train", size)
    first = [order.at(position) for position in range(4)]
    assert first == [75691122, 85030780, 311127, 24021671]
    # Looked up from anywhere, in any order of asking.
    assert order.at(size - 1) == Order(7, "abc", "train", size).at(size - 1)
    assert [order.at(position) for position in range(4)] == first
    samples = np.array([order.at(position) for position in range(WINDOW)])
    counts = np.bincount(samples * 64 // size, minlength=64)
    expected = WINDOW / 64
    # Chi-squared of 63 degrees of freedom: mean 63, deviation 11.
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * 11.3
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 5 / WINDOW**0.5


def test_state_is_that_of_the_last_returned_batch(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    config = with_pairs(small_config, 3)
    loader = Loader(tiny_dataset, tokenizer, config)
    loader.next_batch()
    state = loader.state()
    assert state["samples_consumed"] == 3, "prefetched batches must not count"
    following = [loader.next_batch() for _ in range(5)]
    again = Loader(tiny_dataset, tokenizer, config)
    again.next_batch()
    again.next_batch()
    for resumed in (again, loader):
        resumed.load_state(state)
        assert resumed.state() == state
        assert all(same(resumed.next_batch(), batch) for batch in following)
        resumed.close()


def test_ranks_together_are_the_global_batch(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    config = with_pairs(small_config, 4)
    whole = Loader(tiny_dataset, tokenizer, config).next_batch()
    for ranks in (2, 3, 4):
        parts = [Loader(tiny_dataset, tokenizer, config, rank, ranks).next_batch() for rank in range(ranks)]
        assert torch.equal(torch.cat([part.tokens for part in parts]), whole.tokens)
        assert torch.equal(torch.cat([part.caption_group for part in parts]), whole.caption_group)
    with pytest.raises(ConfigError, match="must be at least the 5 ranks"):
        Loader(tiny_dataset, tokenizer, config, 0, 5)


def test_pinned_batches_are_the_same_in_other_memory(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor.data_ptr())
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    config = with_pairs(small_config, 4)
    plain, other = (Loader(tiny_dataset, tokenizer, config, pinned=wanted) for wanted in (False, True))
    batch = other.next_batch()
    assert same(batch, plain.next_batch())
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(pinned) >= len(tensors)
    assert not {tensor.data_ptr() for tensor in tensors} & set(pinned), "what came out is not what was pinned"
    other.close()
    plain.close()


def test_a_state_of_something_else_is_refused(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    loader = Loader(tiny_dataset, tokenizer, with_pairs(small_config, 4))
    good = loader.state()
    for change, message in (
        ({"seed": 9}, "seed is 9, this run has 0; resume with the same train.seed"),
        ({"global_batch_pairs": 2}, "global_batch_pairs is 2, this run has 4; resume with the same train.global_batch"),
        ({"fingerprint": "x"}, "fingerprint is 'x'"),
        ({"version": 0}, "version is 0"),
        ({"group_by_source": True}, "resume with the same data.group_by_source"),
        ({"sorted_within": 8}, "resume with the same data.bucket_batches"),
        ({"samples_consumed": -1}, "samples_consumed is -1"),
        ({"samples_consumed": True}, "samples_consumed is True"),
    ):
        with pytest.raises(DataError, match=message):
            loader.load_state(good | change)
    with pytest.raises(DataError, match="has no blend, epoch, fingerprint"):
        loader.load_state({"samples_consumed": 4})
    assert loader.state() == good


def test_long_clips_give_a_window_that_moves_with_the_epoch(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    loader = Loader(tiny_dataset, tokenizer, with_pairs(small_config, 8, "data.frames=5"))
    starts = collections.defaultdict(set)
    for _ in range(12):
        batch = loader.next_batch()
        assert batch.pts.shape == (8, 5)
        assert batch.frame_mask.all()
        for key, pts in zip(batch.keys, batch.pts, strict=True):
            assert torch.equal(pts.diff(), torch.full((4,), 0.5)), "frames must be consecutive"
            starts[key].add(pts[0].item())
    assert len(starts["clip3-a"]) > 5
    assert max(starts["clip3-a"]) <= 7.5
    assert starts["clip0-a"] == {0.0, 0.5}


@pytest.fixture
def damaged(tmp_path: Path, tiny_samples: list[Sample]) -> Dataset:
    """`tiny_samples` whose clip1-a has an undecodable frame and clip4-b (held out) too."""
    bad = [
        dataclasses.replace(s, jpegs=(b"bad", *s.jpegs[1:])) if s.key in ("clip1-a", "clip4-b") else s
        for s in tiny_samples
    ]
    return write_dataset(tmp_path / "damaged", bad, {})


def test_a_bad_sample_is_replaced_the_same_way_every_time(
    damaged: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    config = with_pairs(small_config, 8)
    first, second = (Loader(damaged, tokenizer, config) for _ in range(2))
    for _ in range(3):
        batch = first.next_batch()
        assert "clip1-a" not in batch.keys
        assert same(batch, second.next_batch())
    assert first.substituted == second.substituted == 3
    one_by_one = Loader(damaged, tokenizer, with_pairs(small_config, 1))
    counts = []
    for _ in range(8):
        one_by_one.next_batch()
        counts.append(one_by_one.substituted)
    bad = one_by_one._maker.parts[0].order.permutation(0).tolist().index(damaged.keys("train").index("clip1-a"))
    assert counts == [0] * bad + [1] * (8 - bad), "a prefetched substitute counts with its batch"


def test_nothing_but_bad_samples_is_an_error(
    tmp_path: Path, tiny_samples: list[Sample], tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    bad = dataclasses.replace(tiny_samples[0], jpegs=(b"bad",) * 6)
    loader = Loader(write_dataset(tmp_path / "bad", [bad], {}), tokenizer, with_pairs(small_config, 2))
    for _ in range(2):
        with pytest.raises(DataError, match=r"16 samples in a row cannot be read: clip0-a: undecodable_frame"):
            loader.next_batch()
    assert loader.state()["samples_consumed"] == 0


def test_a_corrupt_shard_is_an_error_not_a_substitute(
    tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    for shard in tiny_dataset.folder.glob("train-*.tar"):
        shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    loader = Loader(tiny_dataset, tokenizer, with_pairs(small_config, 4))
    with pytest.raises(DataError, match="the shard is corrupt"):
        loader.next_batch()


def test_what_cannot_be_loaded_is_refused_at_once(
    tmp_path: Path, tiny_dataset: Dataset, tiny_samples: list[Sample], tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    with pytest.raises(ConfigError, match=r"model\.decoder\.vocab"):
        Loader(tiny_dataset, tokenizer, override(small_config, ["model.decoder.vocab=261"]))
    heldout = write_dataset(tmp_path / "heldout", tiny_samples[-2:], {})
    with pytest.raises(DataError, match=r"no samples in the split 'train', only \['heldout'\]"):
        Loader(heldout, tokenizer, small_config)


def test_read_once_reads_every_readable_sample_once(
    damaged: Dataset, tiny_dataset: Dataset, tokenizer: Tokenizer, small_config: RunConfig
) -> None:
    batches = list(read_once(tiny_dataset, tokenizer, small_config, "train", 3))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert [batch.position for batch in batches] == [0, 3, 6]
    assert [key for batch in batches for key in batch.keys] == tiny_dataset.keys("train")
    assert [batch.keys for batch in read_once(damaged, tokenizer, small_config, "heldout", 4)] == [("clip4-a",)]
