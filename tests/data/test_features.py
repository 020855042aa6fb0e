"""The feature cache: the same batches as without it, no JPEG decoded, never stale, never half there."""

import dataclasses
import pickle
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
    assert set(encoder.calls[:-1]) == {16}
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
    left = list(made.split(16))
    caches = {}
    for kind in ("bf16", "int8"):
        rest = iter(left)
        cache = FeatureCache(tmp_path, "hash", SIZE, kind)
        caches[kind] = cache.build(tiny_dataset, lambda _, rest=rest: next(rest), encode_frames=16)  # type: ignore[misc]
    keys = [row.key for number in range(len(tiny_dataset)) for row in [tiny_dataset.row(number)]]
    kept = torch.cat([caches["int8"].read(key) for key in keys])
    assert ((kept - made).abs() <= made.abs().amax(-1, keepdim=True) / 253).all()
    assert not kept[:, 4].any()
    sizes = {kind: sum(f.stat().st_size for f in cache.path(tiny_dataset.fingerprint).glob("*.bin"))
             for kind, cache in caches.items()}  # fmt: skip
    assert sizes == {"bf16": 106 * 9 * 64 * 2, "int8": 106 * 9 * (64 + 4)}
    again = pickle.loads(pickle.dumps(caches["int8"]))
    assert torch.equal(again.read(keys[3], 2, 3), caches["int8"].read(keys[3])[2:5])
    assert repr(again).endswith("samples=10, features=[106, 9, 64] int8)")


@pytest.mark.parametrize("name", ["features.bin", "scales.bin"])
def test_a_truncated_int8_cache_is_refused(tmp_path: Path, tiny_dataset: Dataset, name: str) -> None:
    cache = FeatureCache(tmp_path, "hash", SIZE, "int8").build(tiny_dataset, CountingEncoder())
    file = cache.path(tiny_dataset.fingerprint) / name
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


def test_a_build_that_dies_leaves_nothing(tmp_path: Path, tiny_dataset: Dataset) -> None:
    def dying(frames: Tensor) -> Tensor:
        raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        FeatureCache(tmp_path / "cache", "hash", SIZE).build(tiny_dataset, dying)
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(DataError, match=r"must give \[N P W\]"):
        FeatureCache(tmp_path / "cache", "hash", SIZE).build(tiny_dataset, lambda frames: frames)


def test_a_truncated_cache_is_refused(tmp_path: Path, tiny_dataset: Dataset) -> None:
    cache = FeatureCache(tmp_path, "hash", SIZE).build(tiny_dataset, CountingEncoder())
    file = cache.path(tiny_dataset.fingerprint) / "features.bin"
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
