"""The feature cache: the same batches as without it, no JPEG decoded, never stale, never half there."""

import dataclasses
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from xgenvideo.config import RunConfig, override
from xgenvideo.data import examples as examples_file
from xgenvideo.data import frames as frames_file
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.frames import decode_frames
from xgenvideo.data.loader import Loader, read_once
from xgenvideo.data.shards import write_dataset
from xgenvideo.errors import DataError, MediaError
from xgenvideo.models.video_lm import build_model
from xgenvideo.models.vision import encoder_hash
from xgenvideo.records import Sample

SIZE = 64


class CountingEncoder:
    """Mean colour of each of 4 patches, [N 4 3]; remembers how many frames it got at a time."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, frames: Tensor) -> Tensor:
        self.calls.append(len(frames))
        halves = frames.float().unflatten(-1, (2, -1)).unflatten(-3, (2, -1))
        means: Tensor = halves.mean(dim=(-1, -3))
        return means.flatten(2).transpose(1, 2)


def test_features_are_those_of_each_frame(tmp_path: Path, tiny_dataset: Dataset, tiny_samples: list[Sample]) -> None:
    encoder = CountingEncoder()
    cache = FeatureCache(tmp_path / "cache", "hash", SIZE).build(tiny_dataset, encoder, encode_frames=16)
    assert sum(encoder.calls) == sum(len(sample.jpegs) for sample in tiny_samples)
    # Two of the shards have 21 frames, two 20, two 12; no call is for frames of two.
    assert sorted(encoder.calls) == [4, 4, 5, 5, 12, 12, 16, 16, 16, 16]
    for sample in tiny_samples:
        expected = CountingEncoder()(decode_frames(sample, SIZE)).bfloat16().float()
        assert torch.equal(cache.read(sample.key), expected)
        assert torch.equal(cache.read(sample.key, 2, 3), expected[2:5])
    assert repr(cache).endswith("samples=10, features=[106, 4, 3] bf16)")
    with pytest.raises(DataError, match="no features of 'absent'"):
        cache.read("absent")


def test_int8_features_are_half_the_bytes_and_near(tmp_path: Path, tiny_dataset: Dataset) -> None:
    dice = torch.Generator().manual_seed(3)
    # A large channel and patches of all sizes, one of them zero: what a scale for all of them would lose.
    made = torch.randn(106, 9, 64, generator=dice) * 10.0 ** torch.arange(-4, 5)[:, None]
    made[..., 7] *= 20
    made[:, 4] = 0
    caches = {}
    for kind in ("bf16", "int8"):
        left = [made]

        def encode(frames: Tensor, left: list[Tensor] = left) -> Tensor:
            given, left[0] = left[0].split([len(frames), len(left[0]) - len(frames)])
            return given

        caches[kind] = FeatureCache(tmp_path, "hash", SIZE, kind).build(tiny_dataset, encode, encode_frames=16)
    keys = [tiny_dataset.row(int(number)).key for rows in tiny_dataset.shard_rows().values() for number in rows]
    kept = torch.cat([caches["int8"].read(key) for key in keys])
    assert ((kept - made).abs() <= made.abs().amax(-1, keepdim=True) / 253).all()
    assert not kept[:, 4].any()
    sizes = {kind: sum(f.stat().st_size for f in cache.path(tiny_dataset.fingerprint).glob("*/*.bin"))
             for kind, cache in caches.items()}  # fmt: skip
    assert sizes == {"bf16": 106 * 9 * 64 * 2, "int8": 106 * 9 * (64 + 4)}
    again = pickle.loads(pickle.dumps(caches["int8"]))
    assert torch.equal(again.read(keys[3], 2, 3), caches["int8"].read(keys[3])[2:5])
    assert repr(again).endswith("samples=10, features=[106, 9, 64] int8)")


@pytest.mark.parametrize("name", ["features.bin", "scales.bin"])
def test_a_truncated_int8_cache_is_refused(tmp_path: Path, tiny_dataset: Dataset, name: str) -> None:
    cache = FeatureCache(tmp_path, "hash", SIZE, "int8").build(tiny_dataset, CountingEncoder())
    file = cache.path(tiny_dataset.fingerprint) / "train-00001" / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="remove this folder"):
        FeatureCache(tmp_path, "hash", SIZE, "int8").build(tiny_dataset, CountingEncoder())


def test_a_second_build_encodes_nothing(tmp_path: Path, tiny_dataset: Dataset) -> None:
    FeatureCache(tmp_path, "hash", SIZE).build(tiny_dataset, CountingEncoder())
    encoder = CountingEncoder()
    FeatureCache(tmp_path, "hash", SIZE).build(tiny_dataset, encoder)
    assert encoder.calls == []


def test_a_stale_cache_is_never_used(tmp_path: Path, tiny_dataset: Dataset, tiny_samples: list[Sample]) -> None:
    FeatureCache(tmp_path, "hash", SIZE).build(tiny_dataset, CountingEncoder())
    fewer = write_dataset(tmp_path / "fewer", tiny_samples[:3], {})
    for weights, size, dataset in (("other", SIZE, tiny_dataset), ("hash", 32, tiny_dataset), ("hash", SIZE, fewer)):
        encoder = CountingEncoder()
        FeatureCache(tmp_path, weights, size).build(dataset, encoder)
        assert encoder.calls, (weights, size, dataset)


def test_a_cache_of_other_data_is_refused_by_the_loader(
    tmp_path: Path, tiny_dataset: Dataset, tiny_samples: list[Sample], small_config: RunConfig
) -> None:
    tokenizer = tokenizers.load(tiny_dataset.folder / "tokenizer.json")
    fewer = write_dataset(tmp_path / "fewer", tiny_samples[:3], {})
    for cache in (
        FeatureCache(tmp_path, "hash", SIZE),
        FeatureCache(tmp_path, "hash", SIZE).build(fewer, CountingEncoder()),
        FeatureCache(tmp_path, "hash", 32).build(tiny_dataset, CountingEncoder()),
    ):
        with pytest.raises(DataError, match="build it for this run"):
            Loader(tiny_dataset, tokenizer, small_config, cache=cache)


def files(folder: Path) -> list[str]:
    """Every file below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_build_that_dies_leaves_whole_shards_which_are_not_made_again(tmp_path: Path, tiny_dataset: Dataset) -> None:
    def dying(frames: Tensor) -> Tensor:
        if len(encoder.calls) == 3:
            raise RuntimeError("power")
        return encoder(frames)

    encoder, cache = CountingEncoder(), FeatureCache(tmp_path / "cache", "hash", SIZE)
    with pytest.raises(RuntimeError, match="power"):
        cache.build(tiny_dataset, dying)
    left = files(cache.path(tiny_dataset.fingerprint))
    shards = ("heldout-00000", "train-00000", "train-00001")
    assert left == [f"{shard}/{name}" for shard in shards for name in ("features.bin", "index.json")]
    cache.build(tiny_dataset, encoder)
    assert sum(encoder.calls) == 106
    whole = FeatureCache(tmp_path / "whole", "hash", SIZE).build(tiny_dataset, CountingEncoder())
    names = files(tmp_path / "whole")
    assert names == files(tmp_path / "cache")
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "cache" / name).read_bytes() for name in names)
    assert repr(cache) == repr(whole).replace("whole", "cache")


def test_a_build_of_other_frames_than_it_was_given_is_refused(tmp_path: Path, tiny_dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"must give \[N P W\]"):
        FeatureCache(tmp_path / "cache", "hash", SIZE).build(tiny_dataset, lambda frames: frames)
    assert files(tmp_path / "cache") == []


def test_processes_share_the_shards_and_meet_until_all_are_done(tmp_path: Path, tiny_dataset: Dataset) -> None:
    encoders, told = [CountingEncoder() for _ in range(3)], list[tuple[int, bool]]()
    together = threading.Barrier(3)

    def build(number: int) -> FeatureCache:
        def met(done: bool) -> bool:
            told.append((number, done))
            if done:
                together.wait(30)
            return done

        cache = FeatureCache(tmp_path / "cache", "hash", SIZE)
        return cache.build(tiny_dataset, encoders[number], share=(number, 3), met=met)

    with ThreadPoolExecutor(3) as threads:
        caches = list(threads.map(build, range(3)))
    assert [sum(encoder.calls) for encoder in encoders] == [12 + 12, 21 + 20, 21 + 20]
    # After each of two shards' one batch, then twice at the end: before the index of all is made and after it.
    assert all([done for who, done in told if who == number] == [False, False, True, True] for number in range(3))
    alone = FeatureCache(tmp_path / "alone", "hash", SIZE).build(tiny_dataset, CountingEncoder())
    assert files(tmp_path / "cache") == files(tmp_path / "alone")
    for key in (*tiny_dataset.keys("train"), *tiny_dataset.keys("heldout")):
        assert all(torch.equal(cache.read(key), alone.read(key)) for cache in caches)


def test_few_mapped_shards_read_the_same(
    tmp_path: Path, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path, "hash", SIZE).build(tiny_dataset, CountingEncoder())
    keys = (*tiny_dataset.keys("train"), *tiny_dataset.keys("heldout"))
    whole = [cache.read(key) for key in keys]
    monkeypatch.setattr("xgenvideo.data.features.MOST_MAPPED", 1)
    again = pickle.loads(pickle.dumps(cache))
    assert all(torch.equal(again.read(key), expected) for key, expected in zip(keys, whole, strict=True))


def test_a_truncated_cache_is_refused(tmp_path: Path, tiny_dataset: Dataset) -> None:
    cache = FeatureCache(tmp_path, "hash", SIZE).build(tiny_dataset, CountingEncoder())
    file = cache.path(tiny_dataset.fingerprint) / "train-00001" / "features.bin"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DataError, match="remove this folder"):
        FeatureCache(tmp_path, "hash", SIZE).build(tiny_dataset, CountingEncoder())


def test_with_a_cache_no_jpeg_is_decoded_and_batches_are_the_same(
    tmp_path: Path,
    tiny_samples: list[Sample],
    small_config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoiled = [
        dataclasses.replace(sample, jpegs=(b"bad", *sample.jpegs[1:])) if sample.key == "clip2-b" else sample
        for sample in tiny_samples
    ]
    dataset = write_dataset(tmp_path / "set", spoiled, {})
    tokenizer = tokenizers.train_tokenizer(["moves"], 260)
    config = override(small_config, ["train.global_batch_pairs=4", "layout.microbatch_pairs=4"])
    model = build_model(config)
    plain = Loader(dataset, tokenizer, config)
    without = [plain.next_batch() for _ in range(5)]
    cache = FeatureCache(tmp_path, encoder_hash(model.vision), config.model.vision.image_size)
    cache.build(dataset, model.encode_frames)
    for module in (frames_file, examples_file):
        monkeypatch.setattr(module, "decode_frames", None)
    cached = Loader(dataset, tokenizer, config, cache=cache)
    for batch in without:
        other = cached.next_batch()
        assert other.keys == batch.keys
        assert other.frames is None
        assert other.features is not None
        assert torch.equal(other.pts, batch.pts)
        assert torch.equal(other.tokens, batch.tokens)
        fresh = model.encode_frames(batch.present_frames())
        torch.testing.assert_close(other.features[batch.frame_mask], fresh[batch.frame_mask], rtol=1e-2, atol=1e-2)
        assert not other.features[~batch.frame_mask].any()
    assert cached.substituted == plain.substituted > 0
    with pytest.raises(MediaError, match="clip2-b: undecodable_frame"):
        cache.read("clip2-b")
    keys = [key for batch in read_once(dataset, tokenizer, config, "train", 4, cache) for key in batch.keys]
    assert keys == [key for key in dataset.keys("train") if key != "clip2-b"]
