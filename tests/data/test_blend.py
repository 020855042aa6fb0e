"""Several datasets in one order: the shares hold, each dataset is read in its own epochs, and a resume knows them."""

import collections
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xgenvideo.config import RunConfig, override
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.blend import SLOTS, Slots, shares_of
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.loader import Loader
from xgenvideo.data.shards import write_dataset
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError, DataError
from xgenvideo.records import Sample

PAIRS = 8


@pytest.fixture
def sets(tmp_path: Path, tiny_samples: list[Sample]) -> list[Dataset]:
    """Three datasets of 13, 7 and 5 samples; a key tells its dataset."""
    one = dataclasses.replace(tiny_samples[0], jpegs=tiny_samples[0].jpegs[:1], pts=(0.0,), questions=(), twin=None)
    made = []
    for name, size in (("a", 13), ("b", 7), ("c", 5)):
        samples = [dataclasses.replace(one, key=f"{name}{number}") for number in range(size)]
        made.append(write_dataset(tmp_path / name, samples, {}))
    return made


@pytest.fixture
def words() -> Tokenizer:
    return tokenizers.train_tokenizer(["a"], 260)


def config_of(config: RunConfig, sets: list[Dataset], *changes: str) -> RunConfig:
    """25 % of the second dataset, 12.5 % of the third."""
    blend = f"data.blend={sets[1].folder}=0.25,{sets[2].folder}=0.125"
    sizes = [f"train.global_batch_pairs={PAIRS}", "layout.microbatch_pairs=1", "data.text_tokens=48"]
    plain = ["data.group_by_source=false", "data.cache_features=false"]
    return override(config, [*plain, *sizes, blend, *changes])


def keys_of(loaders: list[Loader], batches: int) -> list[str]:
    """Keys of whole global batches."""
    return [key for _ in range(batches) for loader in loaders for key in loader.next_batch().keys]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    cuts=st.lists(st.integers(1, SLOTS - 1), unique=True, max_size=4),
    block=st.integers(0, 2**40),
)
def test_every_block_has_the_shares_and_leaves_no_gap(seed: int, cuts: list[int], block: int) -> None:
    edges = [0, *sorted(cuts), SLOTS]
    counts = tuple(right - left for left, right in zip(edges, edges[1:], strict=False))
    slots = Slots(seed, tuple(f"f{number}" for number in range(len(counts))), counts)
    found: dict[int, list[int]] = collections.defaultdict(list)
    for position in range(block * SLOTS, (block + 2) * SLOTS):
        number, own = slots.at(position)
        found[number].append(own)
    for number, count in enumerate(counts):
        assert found[number] == list(range(block * count, (block + 2) * count))


@pytest.mark.parametrize("buckets", [0, 2])
def test_shares_hold_and_each_dataset_has_its_own_epochs_over_ranks_and_stops(
    sets: list[Dataset], words: Tokenizer, small_config: RunConfig, buckets: int
) -> None:
    config = config_of(small_config, sets, f"data.bucket_batches={buckets}")
    keys: list[str] = []
    state = None
    for ranks, batches in ((1, 25), (8, 15), (2, 15), (4, 73)):
        loaders = [Loader(sets[0], words, config, rank, ranks) for rank in range(ranks)]
        for loader in loaders:
            if state is not None:
                loader.load_state(state)
        keys += keys_of(loaders, batches)
        state = json.loads(json.dumps(loaders[-1].state()))
        assert loaders[0].epoch == state["samples_consumed"] * 640 // SLOTS // 13
        for loader in loaders:
            loader.close()
    assert len(keys) == SLOTS
    for dataset, share in zip(sets, (0.625, 0.25, 0.125), strict=True):
        own = [key for key in keys if key in dataset.keys("train")]
        assert len(own) == share * len(keys)
        size = len(dataset)
        for start in range(0, len(own) - size + 1, size):
            assert sorted(own[start : start + size]) == sorted(dataset.keys("train")), "not once an epoch"
    through = Loader(sets[0], words, override(config, ["data.workers=0"]))
    assert keys_of([through], len(keys) // PAIRS) == keys
    through.close()


def test_loader_processes_open_the_same_blend(sets: list[Dataset], words: Tokenizer, small_config: RunConfig) -> None:
    config = config_of(small_config, sets)
    loaders = [Loader(sets[0], words, override(config, [f"data.workers={count}"])) for count in (0, 1)]
    assert keys_of(loaders[:1], 6) == keys_of(loaders[1:], 6)
    for loader in loaders:
        loader.close()


def test_another_blend_is_refused_by_name(sets: list[Dataset], words: Tokenizer, small_config: RunConfig) -> None:
    state = Loader(sets[0], words, config_of(small_config, sets)).state()
    assert state["blend"] == {sets[0].fingerprint: 640, sets[1].fingerprint: 256, sets[2].fingerprint: 128}
    for blend in ("", f"{sets[1].folder}=0.25", f"{sets[1].folder}=0.5,{sets[2].folder}=0.125"):
        loader = Loader(sets[0], words, override(config_of(small_config, sets), [f"data.blend={blend}"]))
        with pytest.raises(DataError, match=r"loader state: blend is .*resume with the same data\.blend"):
            loader.load_state(state)


def test_what_is_no_blend_is_refused(sets: list[Dataset], words: Tokenizer, small_config: RunConfig) -> None:
    assert shares_of("") == {}
    assert shares_of("x=y/b=0.5,c=0.25") == {"x=y/b": 0.5, "c": 0.25}
    for text in ("b", "b=", "=0.5", "b=x", "b=0", "b=-0.5", "b=nan", "b=0.2,b=0.1", "b=0.2,", "b=0.0001"):
        with pytest.raises(ConfigError, match="each path once"):
            shares_of(text)
    for text in ("b=1", "b=0.5,c=0.5"):
        with pytest.raises(ConfigError, match=r"data\.shards has the rest"):
            shares_of(text)
    for other in (sets[0], sets[1]):
        blend = f"data.blend={other.folder}=0.1,{sets[1].folder / '..' / sets[1].folder.name}=0.1"
        with pytest.raises(ConfigError, match="each dataset once"):
            Loader(sets[0], words, override(config_of(small_config, sets), [blend]))
    with pytest.raises(DataError, match=r"no dataset\.json here"):
        Loader(sets[0], words, override(config_of(small_config, sets), [f"data.blend={sets[0].folder}/none=0.1"]))
    with pytest.raises(ConfigError, match=r"data\.blend.*features of one dataset"):
        config_of(small_config, sets, "data.cache_features=true")
