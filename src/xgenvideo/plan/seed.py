"""What the stated facts of the 30.2 B run imply, worked out from them and our FLOP formula. Nothing here is a result.

The stated facts are inputs: days, GPUs, utilisation, pairs, batch. They do not say how long a pair's text is or how
often a pair is seen; the two readings below each leave one of the two open and solve for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

from xgenvideo.config import RunConfig
from xgenvideo.plan.flops import Flops, training_flops
from xgenvideo.plan.hardware import H100, Gpu

SECONDS_PER_DAY = 86_400.0
LONGEST_TEXT = 10_000_000


@dataclass(frozen=True)
class StatedRun:
    """The run as stated. `mfu` is a stated target, never a measurement of this code."""

    days: float
    gpus: int
    gpu: Gpu
    mfu: float
    pairs: int
    global_batch_pairs: int
    checkpoint_iterations: int


STATED = StatedRun(
    days=45.0,
    gpus=512,
    gpu=H100,
    mfu=0.445,
    pairs=150_000_000,
    global_batch_pairs=2048,
    checkpoint_iterations=1000,
)


@dataclass(frozen=True)
class Reading:
    """One consistent reading of the stated run; each figure by both FLOP conventions, as (causal, full square)."""

    text_tokens: tuple[float, float]
    epochs: tuple[float, float]
    iterations: tuple[float, float]
    seconds_per_iteration: tuple[float, float]
    checkpoint_hours: tuple[float, float]


@dataclass(frozen=True)
class Implied:
    """What follows from the stated facts, and the two readings that agree with them."""

    stated: StatedRun
    flops: float
    iterations_per_epoch: int
    seconds_per_iteration_once: float
    flops_per_pair_once: float
    text_tokens: int
    flops_per_pair: tuple[float, float]
    many_epochs: Reading
    one_epoch: Reading


def implied(config: RunConfig, stated: StatedRun = STATED) -> Implied:
    """Work out the stated run for the model, frames and text length of `config`."""
    seconds = stated.days * SECONDS_PER_DAY
    flops = seconds * stated.gpus * stated.gpu.bf16_flops_per_second * stated.mfu
    per_epoch = stated.pairs // stated.global_batch_pairs
    once = flops / stated.pairs
    text_tokens = config.data.text_tokens
    pair = _pair(config, text_tokens)
    epochs = (once / pair.total, once / pair.total_quadratic)
    tokens = (
        solve_text_tokens(config, once, lambda found: found.total),
        solve_text_tokens(config, once, lambda found: found.total_quadratic),
    )
    return Implied(
        stated=stated,
        flops=flops,
        iterations_per_epoch=per_epoch,
        seconds_per_iteration_once=seconds / per_epoch,
        flops_per_pair_once=once,
        text_tokens=text_tokens,
        flops_per_pair=(pair.total, pair.total_quadratic),
        many_epochs=_reading(stated, (float(text_tokens), float(text_tokens)), epochs),
        one_epoch=_reading(stated, (float(tokens[0]), float(tokens[1])), (1.0, 1.0)),
    )


def _pair(config: RunConfig, text_tokens: int) -> Flops:
    frames = config.data.frames
    return training_flops(config, 1, text_tokens, frames, frames)


def _reading(stated: StatedRun, text_tokens: tuple[float, float], epochs: tuple[float, float]) -> Reading:
    per_epoch = stated.pairs / stated.global_batch_pairs
    iterations = (per_epoch * epochs[0], per_epoch * epochs[1])
    seconds = stated.days * SECONDS_PER_DAY
    each = (seconds / iterations[0], seconds / iterations[1])
    hours = stated.checkpoint_iterations / 3600
    return Reading(text_tokens, epochs, iterations, each, (each[0] * hours, each[1] * hours))


def solve_text_tokens(config: RunConfig, flops_per_pair: float, convention: Callable[[Flops], float]) -> int:
    """The most text tokens a pair can have within `flops_per_pair`, by halving; 0 when its frames alone cost more."""
    low, high = 0, LONGEST_TEXT
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if convention(_pair(config, middle)) <= flops_per_pair else (low, middle)
    return low
