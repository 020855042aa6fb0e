"""Text tokens a pair, epochs, days: given two, the third. And the same layout on other GPUs and numbers of them."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.plan.hardware import GPUS
from xgenvideo.plan.operations import checkpoints
from xgenvideo.plan.report import PlanReport, machine_of, on_gpus, plan
from xgenvideo.plan.timing import Machine, step_time

SHORTEST_TEXT, LONGEST_TEXT = 8, 1_000_000
SECONDS_PER_DAY = 86_400.0


@dataclass(frozen=True)
class Solved:
    """A run by its three figures; `solved` names the one that was worked out. `goodput` is in the days."""

    text_tokens: int
    epochs: float
    days: float
    steps: int
    step_seconds: float
    goodput: float
    solved: str


def with_tokens(config: RunConfig, text_tokens: int) -> RunConfig:
    """`config` with so many text tokens a pair."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, text_tokens=text_tokens))


def solve(
    config: RunConfig, gpus: int, machine: Machine, text_tokens: int | None, epochs: float | None, days: float | None
) -> Solved:
    """Work out the one of the three that is None; tokens fall back to the recipe's where two are.

    Raises ConfigError where all three are given, where the recipe does not say how many pairs there are, or where even
    the shortest text takes longer.
    """
    if None not in (text_tokens, epochs, days):
        raise ConfigError("--tokens-per-pair, --epochs, --days", days, "leave one of the three open: it is solved for")
    pairs = config.data.pairs_expected
    if not pairs:
        raise ConfigError("data.pairs_expected", pairs, "must say how many pairs an epoch has")
    if days is not None and epochs is not None:
        seconds = days * SECONDS_PER_DAY / (pairs * epochs / config.train.global_batch_pairs)
        tokens = _longest(lambda length: _step(with_tokens(config, length), gpus, machine) <= seconds)
        return _solved(config, gpus, machine, tokens, epochs, "tokens a pair")
    tokens = text_tokens or config.data.text_tokens
    if days is not None:
        one = _solved(config, gpus, machine, tokens, 1.0, "epochs")
        return _solved(config, gpus, machine, tokens, days / one.days, "epochs")
    return _solved(config, gpus, machine, tokens, epochs or 1.0, "days")


def _solved(config: RunConfig, gpus: int, machine: Machine, tokens: int, epochs: float, solved: str) -> Solved:
    report = plan(with_tokens(config, tokens), gpus, machine.cluster.gpu.name, machine)
    step = report.estimates[0].step.total
    steps = max(1, math.ceil(config.data.pairs_expected * epochs / config.train.global_batch_pairs))
    share = report.checkpoints.goodput
    return Solved(tokens, epochs, steps * step / share / SECONDS_PER_DAY, steps, step, share, solved)


def _step(config: RunConfig, gpus: int, machine: Machine) -> float:
    """Seconds of a step with what failures and checkpoints add."""
    filled = on_gpus(config, gpus)
    seconds = step_time(filled, machine).total
    return seconds / checkpoints(filled, gpus, seconds).goodput


def _longest(fits: Callable[[int], bool]) -> int:
    """The most tokens that fit, by halving. Raises ConfigError where the fewest do not."""
    if not fits(SHORTEST_TEXT):
        raise ConfigError("--days", SHORTEST_TEXT, "is too short for this many epochs, even of the shortest texts")
    low, high = SHORTEST_TEXT, LONGEST_TEXT
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def compare(config: RunConfig, gpus: int) -> list[PlanReport]:
    """The recipe's layout on every GPU, and on half, twice and four times as many, where it can be laid out."""
    found = []
    for gpu in GPUS:
        for number in (gpus // 2, gpus, 2 * gpus, 4 * gpus):
            try:
                found.append(plan(config, number, gpu.name, machine_of(gpu.name)))
            except ConfigError:
                continue  # the layout's replica or the batch does not divide so
    if not found:
        raise ConfigError("--gpus", gpus, "neither it nor its half or double can be laid out")
    return found
