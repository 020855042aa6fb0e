"""One run, as frozen dataclasses. A recipe (recipes/) returns a RunConfig; `section.field=value` overrides one field.

No torch here: the planner and `xgv --help` read configs too.
"""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xgenvideo.errors import ConfigError


@dataclass(frozen=True)
class VisionConfig:
    """The frozen encoder, a CLIP-style pre-norm ViT. `weights`: "random:SEED", "builtin:tiny" or a folder on disk."""

    width: int
    depth: int
    heads: int
    mlp: int
    patch: int
    image_size: int
    weights: str = "random:0"

    @property
    def patches(self) -> int:
        """Patch features a frame."""
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True)
class ResamplerConfig:
    """Spatio-temporal queries: frames' patch features in, `queries` latents of `width` out. `time`: real or slot."""

    queries: int
    width: int
    depth: int
    heads: int
    frame_slots: int = 64
    time: str = "real"


@dataclass(frozen=True)
class DecoderConfig:
    """Causal decoder; `cross_blocks` gated cross-attention blocks are spread evenly over its upper half."""

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocab: int
    cross_blocks: int
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-5

    @property
    def lower_layers(self) -> int:
        """Layers of the unimodal lower half; the text embedding is read after them."""
        return self.depth // 2

    @property
    def cross_before(self) -> tuple[int, ...]:
        """The self-attention layers that have a gated cross-attention block before them."""
        upper = self.depth - self.lower_layers
        return tuple(self.lower_layers + i * upper // self.cross_blocks for i in range(self.cross_blocks))


@dataclass(frozen=True)
class ModelConfig:
    """All parts of the model. `embedding`: width of the shared video-text embedding."""

    vision: VisionConfig
    resampler: ResamplerConfig
    decoder: DecoderConfig
    embedding: int


@dataclass(frozen=True)
class ObjectiveConfig:
    """Next-token loss plus `contrastive_weight` times the video-text contrastive loss."""

    contrastive_weight: float = 1.0
    contrastive: str = "infonce"
    contrastive_scope: str = "global"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW; lr warms up over `warmup_fraction` of the steps, then falls as a cosine to `lr * min_lr_fraction`."""

    lr: float = 1.5e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup_fraction: float = 0.02
    min_lr_fraction: float = 0.1
    clip_norm: float = 1.0


@dataclass(frozen=True)
class DataConfig:
    """What a training sample holds: at most `frames` frames at `fps`, `text_tokens` tokens of packed documents."""

    shards: str = ""
    frames: int = 64
    fps: float = 2.0
    text_tokens: int = 512
    cache_features: bool = False
    pairs_expected: int = 0


@dataclass(frozen=True)
class LayoutConfig:
    """How ranks are used: tensor x pipeline x data. `microbatch_pairs`: pairs a microbatch of one replica."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    virtual_stages: int = 1
    microbatch_pairs: int = 1
    schedule: str = "1f1b"

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.tensor * self.pipeline * self.data


@dataclass(frozen=True)
class TrainConfig:
    """The loop. `save_every_steps` counts optimizer steps; `precision` is that of matrix work, masters are fp32."""

    steps: int
    global_batch_pairs: int
    precision: str = "bf16"
    seed: int = 0
    save_every_steps: int = 1000
    keep_checkpoints: int = 2
    log_every_steps: int = 10
    eval_every_steps: int = 0
    threads: int = 0
    stop_after_steps: int = 0


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run. Saved as JSON beside every checkpoint."""

    name: str
    model: ModelConfig
    train: TrainConfig
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)

    def to_json(self) -> str:
        """The config as JSON text, keys in the order of the fields."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def save(self, path: Path) -> None:
        """Write the config as JSON."""
        path.write_text(self.to_json(), encoding="utf-8")


def from_dict(values: dict[str, Any], cls: type[Any] = RunConfig, prefix: str = "") -> Any:
    """Build a config dataclass from nested dicts. Raises ConfigError for an unknown or missing key or a wrong type."""
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(prefix + key, values[key], "no such setting", sorted(hints))
    arguments: dict[str, Any] = {}
    for spec in dataclasses.fields(cls):
        name = prefix + spec.name
        if spec.name not in values:
            if spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                raise ConfigError(name, None, "is missing")
            continue
        value, hint = values[spec.name], hints[spec.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ConfigError(name, value, "must be a section (a JSON object)")
            arguments[spec.name] = from_dict(value, typing.cast(type[Any], hint), name + ".")
        else:
            arguments[spec.name] = _typed(name, value, hint)
    return cls(**arguments)


def load(path: Path) -> RunConfig:
    """Read a config that `RunConfig.save` wrote, and check it. Raises ConfigError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("config", str(path), f"cannot be read as JSON ({error})") from error
    config: RunConfig = from_dict(values)
    check(config)
    return config


def override(config: RunConfig, assignments: list[str]) -> RunConfig:
    """Apply `section.field=value` overrides, then check. Raises ConfigError naming the setting and the valid ones."""
    values = dataclasses.asdict(config)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(name, "", "an override is written section.field=value")
        _set(values, name, text)
    changed: RunConfig = from_dict(values)
    check(changed)
    return changed


def _set(values: dict[str, Any], name: str, text: str) -> None:
    """Put the parsed `text` at the dotted `name` of nested dicts."""
    *sections, last = name.split(".")
    place = values
    for depth, section in enumerate(sections):
        found = place.get(section)
        if not isinstance(found, dict):
            raise ConfigError(".".join(sections[: depth + 1]), text, "no such section", _sections(place))
        place = found
    if last not in place:
        raise ConfigError(name, text, "no such setting", sorted(place))
    if isinstance(place[last], dict):
        raise ConfigError(name, text, "is a section; set one of its fields", sorted(place[last]))
    place[last] = _parsed(text, place[last])


def _sections(place: dict[str, Any]) -> list[str]:
    return sorted(key for key, value in place.items() if isinstance(value, dict))


def _parsed(text: str, current: object) -> Any:
    """`text` as JSON where that gives something, otherwise as the string it is."""
    if isinstance(current, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _typed(name: str, value: Any, hint: Any) -> Any:
    """`value` as the type `hint`, or ConfigError. An int is accepted for a float; a bool never for a number."""
    allowed = hint.__args__ if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if int in allowed and isinstance(value, float) and value.is_integer():
        return int(value)
    for kind in allowed:
        if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
            return value
    rule = f"must be of type {' or '.join(kind.__name__ for kind in allowed)}"
    raise ConfigError(name, value, rule, ("true", "false") if bool in allowed else ())


def check(config: RunConfig) -> None:
    """Refuse impossible values. Raises ConfigError: setting, value, rule, valid choices."""
    _check_model(config.model)
    _check_run(config)


def _rule(holds: bool, setting: str, value: object, rule: str, choices: typing.Iterable[object] = ()) -> None:
    if not holds:
        raise ConfigError(setting, value, rule, choices)


def _divisors(number: int, limit: int = 8) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0][-limit:]


def _check_model(model: ModelConfig) -> None:
    vision, resampler, decoder = model.vision, model.resampler, model.decoder
    for section, part in (("vision", vision), ("resampler", resampler), ("decoder", decoder)):
        for spec in dataclasses.fields(part):
            value = getattr(part, spec.name)
            if isinstance(value, int | float):
                _rule(value > 0, f"model.{section}.{spec.name}", value, "must be positive")
    _rule(model.embedding > 0, "model.embedding", model.embedding, "must be positive")
    for section, width, heads in (
        ("vision", vision.width, vision.heads),
        ("resampler", resampler.width, resampler.heads),
    ):
        _rule(width % heads == 0, f"model.{section}.heads", heads, f"must divide width {width}", _divisors(width))
    _rule(
        vision.image_size % vision.patch == 0,
        "model.vision.patch",
        vision.patch,
        f"must divide image_size {vision.image_size}",
        _divisors(vision.image_size),
    )
    weights = vision.weights
    kind, _, seed = weights.partition(":")
    known = (kind == "random" and seed.isdigit()) or weights == "builtin:tiny" or (kind not in ("random", "builtin"))
    _rule(known and bool(weights), "model.vision.weights", weights, "no such weights", _WEIGHTS)
    _rule(resampler.width % 2 == 0, "model.resampler.width", resampler.width, "must be even (sines and cosines)")
    _rule(resampler.time in TIMES, "model.resampler.time", resampler.time, "no such time encoding", TIMES)
    _rule(decoder.head_size % 2 == 0, "model.decoder.head_size", decoder.head_size, "must be even (RoPE)")
    _rule(
        decoder.heads % decoder.kv_heads == 0,
        "model.decoder.kv_heads",
        decoder.kv_heads,
        f"must divide heads {decoder.heads}",
        _divisors(decoder.heads),
    )
    _rule(decoder.depth % 2 == 0, "model.decoder.depth", decoder.depth, "must be even (two halves)")
    upper = decoder.depth - decoder.lower_layers
    _rule(
        decoder.cross_blocks <= upper,
        "model.decoder.cross_blocks",
        decoder.cross_blocks,
        f"must be at most the {upper} layers of the upper half",
    )


_WEIGHTS = ("random:SEED", "builtin:tiny", "a folder on disk")
TIMES = ("real", "slot")
PRECISIONS = ("fp32", "bf16")
CONTRASTIVE = ("infonce", "sigmoid")
SCOPES = ("global", "microbatch")
SCHEDULES = ("gpipe", "1f1b", "interleaved_1f1b", "zero_bubble", "zbv")


def _check_run(config: RunConfig) -> None:
    train, data, layout, optimizer, objective = (
        config.train,
        config.data,
        config.layout,
        config.optimizer,
        config.objective,
    )
    _rule(train.precision in PRECISIONS, "train.precision", train.precision, "no such precision", PRECISIONS)
    for name in ("steps", "global_batch_pairs", "save_every_steps", "log_every_steps"):
        _rule(getattr(train, name) >= 1, f"train.{name}", getattr(train, name), "must be at least 1")
    for name in ("threads", "eval_every_steps", "stop_after_steps", "seed"):
        _rule(getattr(train, name) >= 0, f"train.{name}", getattr(train, name), "must be 0 or more")
    _rule(train.keep_checkpoints >= 2, "train.keep_checkpoints", train.keep_checkpoints, "must be at least 2")
    for name in ("tensor", "pipeline", "data", "virtual_stages", "microbatch_pairs"):
        _rule(getattr(layout, name) >= 1, f"layout.{name}", getattr(layout, name), "must be at least 1")
    _rule(layout.schedule in SCHEDULES, "layout.schedule", layout.schedule, "no such schedule", SCHEDULES)
    replica = layout.data * layout.microbatch_pairs
    _rule(
        train.global_batch_pairs % replica == 0,
        "train.global_batch_pairs",
        train.global_batch_pairs,
        f"must be a multiple of layout.data x layout.microbatch_pairs = {replica}",
        sorted(
            {
                max(replica, train.global_batch_pairs // replica * replica),
                -(-train.global_batch_pairs // replica) * replica,
            }
        ),
    )
    _rule(data.fps > 0, "data.fps", data.fps, "must be positive")
    _rule(
        1 <= data.frames <= config.model.resampler.frame_slots,
        "data.frames",
        data.frames,
        f"must be 1 to model.resampler.frame_slots = {config.model.resampler.frame_slots}",
    )
    _rule(data.text_tokens >= 8, "data.text_tokens", data.text_tokens, "must be at least 8")
    _rule(
        objective.contrastive in CONTRASTIVE,
        "objective.contrastive",
        objective.contrastive,
        "no such loss",
        CONTRASTIVE,
    )
    _rule(
        objective.contrastive_scope in SCOPES,
        "objective.contrastive_scope",
        objective.contrastive_scope,
        "no such scope",
        SCOPES,
    )
    _rule(
        objective.contrastive_weight >= 0,
        "objective.contrastive_weight",
        objective.contrastive_weight,
        "must be 0 or more",
    )
    _rule(optimizer.lr > 0, "optimizer.lr", optimizer.lr, "must be positive")
    _rule(optimizer.clip_norm > 0, "optimizer.clip_norm", optimizer.clip_norm, "must be positive")
    _rule(optimizer.weight_decay >= 0, "optimizer.weight_decay", optimizer.weight_decay, "must be 0 or more")
    for name in ("beta1", "beta2", "warmup_fraction", "min_lr_fraction"):
        value = getattr(optimizer, name)
        _rule(
            0 <= value < 1 or (name == "min_lr_fraction" and value == 1),
            f"optimizer.{name}",
            value,
            "must be in [0, 1)",
        )
