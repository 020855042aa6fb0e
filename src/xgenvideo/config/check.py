"""The rules of a config: one `check`, which names the setting, its value, the rule and the valid choices."""

import dataclasses
from collections.abc import Iterable

from xgenvideo.config.sections import ModelConfig, RunConfig
from xgenvideo.errors import ConfigError


def check(config: RunConfig) -> None:
    """Refuse impossible values. Raises ConfigError: setting, value, rule, valid choices."""
    _check_model(config.model)
    _check_run(config)


def _rule(holds: bool, setting: str, value: object, rule: str, choices: Iterable[object] = ()) -> None:
    if not holds:
        raise ConfigError(setting, value, rule, choices)


def _divisors(number: int, limit: int = 8) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0][-limit:]


def _check_model(model: ModelConfig) -> None:
    vision, resampler, decoder = model.vision, model.resampler, model.decoder
    for section, part in (("vision", vision), ("resampler", resampler), ("decoder", decoder)):
        for spec in dataclasses.fields(part):
            value = getattr(part, spec.name)
            if isinstance(value, int | float) and spec.name != "local_layers":
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
    _rule(
        0 <= resampler.local_layers <= resampler.depth,
        "model.resampler.local_layers",
        resampler.local_layers,
        f"must be 0 to depth = {resampler.depth}",
    )
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
    _rule(data.bucket_batches >= 0, "data.bucket_batches", data.bucket_batches, "must be 0 or more")
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
    _rule(optimizer.gate_lr_scale > 0, "optimizer.gate_lr_scale", optimizer.gate_lr_scale, "must be positive")
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
