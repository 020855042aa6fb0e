"""The rules of a config: one `check`, which names the setting, its value, the rule and the valid choices."""

import dataclasses
import math
from collections.abc import Iterable

from xgenvideo.config.sections import (
    DecoderConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    SafetyConfig,
    TrainConfig,
)
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
    scaling = ("decoder.rope_scaling", decoder.rope_scaling)
    for section, part in (("vision", vision), ("resampler", resampler), ("decoder", decoder), scaling):
        for spec in dataclasses.fields(part):
            value = getattr(part, spec.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and spec.name != "gate_start":
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
    if vision.convolutional:
        for name, needed in (("width", 1280), ("patch", 32)):
            found = getattr(vision, name)
            _rule(found == needed, f"model.vision.{name}", found, f"is of another encoder than {weights}", [needed])
    known = (kind == "random" and seed.isdigit()) or weights == "builtin:tiny" or (kind not in ("random", "builtin"))
    _rule(known and bool(weights), "model.vision.weights", weights, "no such weights", _WEIGHTS)
    _rule(resampler.width % 2 == 0, "model.resampler.width", resampler.width, "must be even (sines and cosines)")
    _rule(resampler.time in TIMES, "model.resampler.time", resampler.time, "no such time encoding", TIMES)
    _check_decoder(decoder)


def _check_decoder(decoder: DecoderConfig) -> None:
    _rule(decoder.head_size % 2 == 0, "model.decoder.head_size", decoder.head_size, "must be even (RoPE)")
    _rule(
        decoder.heads % decoder.kv_heads == 0,
        "model.decoder.kv_heads",
        decoder.kv_heads,
        f"must divide heads {decoder.heads}",
        _divisors(decoder.heads),
    )
    scaling = decoder.rope_scaling
    high, rule = scaling.high_freq_factor, f"must be more than low_freq_factor = {scaling.low_freq_factor:g}"
    _rule(high > scaling.low_freq_factor, "model.decoder.rope_scaling.high_freq_factor", high, rule)
    _rule(decoder.depth % 2 == 0, "model.decoder.depth", decoder.depth, "must be even (two halves)")
    upper = decoder.depth - decoder.lower_layers
    _rule(
        decoder.cross_blocks <= upper,
        "model.decoder.cross_blocks",
        decoder.cross_blocks,
        f"must be at most the {upper} layers of the upper half",
    )
    place, start = decoder.cross_placement, decoder.gate_start
    _rule(place in PLACEMENTS, "model.decoder.cross_placement", place, "no such placement", PLACEMENTS)
    _rule(start >= 0, "model.decoder.gate_start", start, "must be 0 or more: closed, to 20: no gates")


_WEIGHTS = ("random:SEED", "builtin:tiny", "efficientnet-lite0", "a folder on disk")
TIMES = ("real", "slot")
PLACEMENTS = ("even", "last")
RECOMPUTE = ("none", "selective", "full")
SPLIT_BACKWARD = ("zero_bubble", "zbv")
PRECISIONS = ("fp32", "bf16", "fp64")
CONTRASTIVE = ("infonce", "sigmoid")
SCOPES = ("global", "microbatch")
FEATURE_TYPES = ("bf16", "int8")
SCHEDULES = ("gpipe", "1f1b", "interleaved_1f1b", "zero_bubble", "zbv")


def _check_run(config: RunConfig) -> None:
    _check_train(config.train)
    _check_layout(config)
    _check_data(config)
    _check_objective(config.objective)
    _check_optimizer(config.optimizer)
    _check_safety(config.safety)


def _check_train(train: TrainConfig) -> None:
    _rule(train.precision in PRECISIONS, "train.precision", train.precision, "no such precision", PRECISIONS)
    _rule(train.recompute in RECOMPUTE, "train.recompute", train.recompute, "no such way", RECOMPUTE)
    budget, way = train.recompute_budget_gib, train.recompute
    _rule(budget >= 0, "train.recompute_budget_gib", budget, "must be 0 or more GiB; 0 for no budget")
    _rule(not budget or way == "none", "train.recompute", way, "is chosen by train.recompute_budget_gib", ["none"])
    _rule(not train.fp8 or train.precision == "bf16", "train.precision", train.precision, "train.fp8 wants", ["bf16"])
    for name in ("steps", "global_batch_pairs", "save_every_steps", "log_every_steps"):
        _rule(getattr(train, name) >= 1, f"train.{name}", getattr(train, name), "must be at least 1")
    for name in ("startup_timeout_seconds", "step_timeout_seconds"):
        _rule(getattr(train, name) > 0, f"train.{name}", getattr(train, name), "must be more than 0 seconds")
    for name in ("threads", "eval_every_steps", "eval_batches", "stop_after_steps", "seed"):
        _rule(getattr(train, name) >= 0, f"train.{name}", getattr(train, name), "must be 0 or more")
    _rule(train.keep_checkpoints >= 2, "train.keep_checkpoints", train.keep_checkpoints, "must be at least 2")


def _check_layout(config: RunConfig) -> None:
    layout, pairs = config.layout, config.train.global_batch_pairs
    for name in ("tensor", "pipeline", "data", "virtual_stages", "microbatch_pairs"):
        _rule(getattr(layout, name) >= 1, f"layout.{name}", getattr(layout, name), "must be at least 1")
    _rule(layout.schedule in SCHEDULES, "layout.schedule", layout.schedule, "no such schedule", SCHEDULES)
    if layout.schedule in SPLIT_BACKWARD and layout.pipeline > 1:
        rule = f"does not go with layout.schedule = {layout.schedule}, which runs the backward in two parts"
        for name, needed in (("recompute", "none"), ("recompute_budget_gib", 0.0), ("compile", False), ("fp8", False)):
            value = getattr(config.train, name)
            _rule(value == needed, f"train.{name}", value, rule, [needed])
    kinds = ("zero1", "replicate")
    _rule(layout.data_parallel in kinds, "layout.data_parallel", layout.data_parallel, "no such way", kinds)
    replica = layout.data * layout.microbatch_pairs
    rule = f"must be a multiple of layout.data x layout.microbatch_pairs = {replica}"
    if pairs % layout.data == 0:
        rule += f"; or set layout.microbatch_pairs={math.gcd(layout.microbatch_pairs, pairs // layout.data)}"
    near = sorted({max(replica, pairs // replica * replica), -(-pairs // replica) * replica})
    _rule(pairs % replica == 0, "train.global_batch_pairs", pairs, rule, near)


def _check_data(config: RunConfig) -> None:
    data, slots = config.data, config.model.resampler.frame_slots
    _rule(data.fps > 0, "data.fps", data.fps, "must be positive")
    rule = f"must be 1 to model.resampler.frame_slots = {slots}"
    _rule(1 <= data.frames <= slots, "data.frames", data.frames, rule)
    _rule(data.bucket_batches >= 0, "data.bucket_batches", data.bucket_batches, "must be 0 or more")
    rule = "cannot be used with data.cache_features=true, which keeps the features of one dataset"
    _rule(not (data.blend and data.cache_features), "data.blend", data.blend, rule)
    _rule(data.feature_type in FEATURE_TYPES, "data.feature_type", data.feature_type, "no such type", FEATURE_TYPES)
    _rule(data.workers >= 0, "data.workers", data.workers, "must be 0 or more processes of each rank")
    timeout = data.worker_timeout_seconds
    _rule(timeout > 0, "data.worker_timeout_seconds", timeout, "must be more than 0 seconds")
    _rule(0 <= data.bad_share <= 1, "data.bad_share", data.bad_share, "must be in [0, 1]")
    _rule(data.text_tokens >= 8, "data.text_tokens", data.text_tokens, "must be at least 8")


def _check_objective(objective: ObjectiveConfig) -> None:
    loss, scope, weight = objective.contrastive, objective.contrastive_scope, objective.contrastive_weight
    _rule(loss in CONTRASTIVE, "objective.contrastive", loss, "no such loss", CONTRASTIVE)
    _rule(scope in SCOPES, "objective.contrastive_scope", scope, "no such scope", SCOPES)
    _rule(weight >= 0, "objective.contrastive_weight", weight, "must be 0 or more")


def _check_optimizer(optimizer: OptimizerConfig) -> None:
    for name in ("lr", "gate_lr_scale", "clip_norm"):
        _rule(getattr(optimizer, name) > 0, f"optimizer.{name}", getattr(optimizer, name), "must be positive")
    _rule(optimizer.weight_decay >= 0, "optimizer.weight_decay", optimizer.weight_decay, "must be 0 or more")
    for name in ("beta1", "beta2", "warmup_fraction"):
        _rule(0 <= getattr(optimizer, name) < 1, f"optimizer.{name}", getattr(optimizer, name), "must be in [0, 1)")
    least = optimizer.min_lr_fraction
    _rule(0 <= least <= 1, "optimizer.min_lr_fraction", least, "must be in [0, 1]")


def _check_safety(safety: SafetyConfig) -> None:
    for spec in dataclasses.fields(safety):
        value = getattr(safety, spec.name)
        if spec.name != "copy_to":
            _rule(value >= 0, f"safety.{spec.name}", value, "must be 0 or more; 0 switches it off")
    for name in ("spike_factor", "slow_rank_factor"):
        value = getattr(safety, name)
        _rule(value == 0 or value > 1, f"safety.{name}", value, "must be more than 1, or 0 to switch it off")
    if safety.spike_factor:
        _rule(safety.spike_window >= 5, "safety.spike_window", safety.spike_window, "must be at least 5 steps")
