"""Configs: overrides, refusals that name setting, value, rule and choices, and JSON that comes back equal."""

import dataclasses
import json
from pathlib import Path

import pytest

from xgenvideo import config as configs
from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.recipes import find


def test_an_override_changes_one_field_and_nothing_else() -> None:
    before = find("tiny")
    after = configs.override(before, ["optimizer.lr=0.5"])
    assert after.optimizer.lr == 0.5
    assert dataclasses.replace(after, optimizer=before.optimizer) == before


def test_overrides_are_typed() -> None:
    changed = configs.override(
        find("tiny"), ["train.steps=7", "data.shards=1e3", "data.cache_features=false", "optimizer.lr=1"]
    )
    assert changed.train.steps == 7
    assert changed.data.shards == "1e3"
    assert changed.data.cache_features is False
    assert changed.optimizer.lr == 1.0
    assert isinstance(changed.optimizer.lr, float)


@pytest.mark.parametrize(
    ("override", "setting", "says"),
    [
        ("optimizer.lrr=1", "optimizer.lrr", "lr"),
        ("optimiser.lr=1", "optimiser", "optimizer"),
        ("lr=1", "lr", "no such setting"),
        ("train=1", "train", "steps"),
        ("train.steps", "train.steps", "section.field=value"),
        ("train.steps=many", "train.steps", "int"),
        ("train.steps=1.5", "train.steps", "int"),
        ("train.steps=true", "train.steps", "int"),
        ("train.steps=0", "train.steps", "at least 1"),
        ("data.cache_features=1", "data.cache_features", "true, false"),
        ("train.precision=fp8", "train.precision", "fp32, bf16"),
        ("model.resampler.time=none", "model.resampler.time", "real, slot"),
        ("model.decoder.kv_heads=3", "model.decoder.kv_heads", "must divide"),
        ("model.decoder.query_key_norm=1", "model.decoder.query_key_norm", "true, false"),
        ("model.decoder.rope_scaling=8", "model.decoder.rope_scaling", "high_freq_factor"),
        ("model.decoder.rope_scaling.factor=0", "model.decoder.rope_scaling.factor", "positive"),
        (
            "model.decoder.rope_scaling.high_freq_factor=1",
            "model.decoder.rope_scaling.high_freq_factor",
            "low_freq_factor = 1",
        ),
        ("model.vision.patch=7", "model.vision.patch", "must divide"),
        ("model.vision.weights=builtin:huge", "model.vision.weights", "builtin:tiny"),
        ("train.global_batch_pairs=33", "train.global_batch_pairs", "multiple"),
        ("layout.data=5", "train.global_batch_pairs", "multiple"),
        ("layout.data=4", "train.global_batch_pairs", "or set layout.microbatch_pairs=8"),
        ("data.frames=65", "data.frames", "frame_slots"),
        ("optimizer.beta2=1.0", "optimizer.beta2", "[0, 1)"),
        ("optimizer.lr=NaN", "optimizer.lr", "positive"),
        ("optimizer.lr=-1", "optimizer.lr", "positive"),
        ("layout.schedule=gpip", "layout.schedule", "gpipe"),
    ],
)
def test_a_wrong_override_names_the_setting_and_what_is_valid(override: str, setting: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs.override(find("tiny"), [override])
    assert caught.value.setting == setting
    assert says in str(caught.value)


def test_a_config_comes_back_from_json(tmp_path: Path) -> None:
    config = configs.override(find("video_30b"), ["train.seed=5"])
    config.save(tmp_path / "config.json")
    assert configs.load(tmp_path / "config.json") == config


def test_json_with_an_unknown_or_missing_key_is_refused(tmp_path: Path) -> None:
    values = json.loads(find("tiny").to_json())
    with pytest.raises(ConfigError, match=r"train\.step "):
        configs.from_dict({**values, "train": {**values["train"], "step": 1}})
    with pytest.raises(ConfigError, match=r"model\.embedding = None: is missing"):
        configs.from_dict({**values, "model": {k: v for k, v in values["model"].items() if k != "embedding"}})
    with pytest.raises(ConfigError, match="section"):
        configs.from_dict({**values, "train": 3})
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        configs.load(tmp_path / "config.json")


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        find("tiny").name = "other"  # type: ignore[misc]


def test_every_field_of_every_section_can_be_overridden_with_its_own_value() -> None:
    config = find("tiny")

    def assignments(values: dict[str, object], prefix: str = "") -> list[str]:
        found = []
        for name, value in values.items():
            if isinstance(value, dict):
                found += assignments(value, f"{prefix}{name}.")
            else:
                found.append(f"{prefix}{name}={value if isinstance(value, str) else json.dumps(value)}")
        return found

    everything = assignments(dataclasses.asdict(config))
    assert len(everything) > 50
    assert configs.override(config, everything) == config


def test_the_cross_blocks_sit_in_the_upper_half() -> None:
    for name in ("tiny", "one_gpu", "video_30b"):
        config: RunConfig = find(name)
        decoder = config.model.decoder
        assert len(set(decoder.cross_before)) == decoder.cross_blocks
        assert all(decoder.lower_layers <= layer < decoder.depth for layer in decoder.cross_before)


def test_cross_blocks_before_the_last_layers() -> None:
    config = configs.override(
        find("tiny"), ["model.decoder.cross_blocks=1", "model.decoder.cross_placement=last", "model.decoder.depth=8"]
    )
    assert config.model.decoder.cross_before == (7,)
    assert configs.override(config, ["model.decoder.cross_placement=even"]).model.decoder.cross_before == (4,)
    with pytest.raises(ConfigError, match=r"model\.decoder\.cross_placement.*even, last"):
        configs.override(config, ["model.decoder.cross_placement=first"])
    with pytest.raises(ConfigError, match=r"model\.decoder\.gate_start"):
        configs.override(config, ["model.decoder.gate_start=-1"])
