"""Fit the rates on published runs, and say how far a family is off when it is left out. Run by `make planner-report`.

Each rate starts from its default in Rates, taken from what is published of kernels and links, and may move as far as
its tolerance says: the sum of Huber losses of log time and of squared distances is least (Gauss-Newton on logarithms).
Families weigh as the square root of their size, so that many rows of one source do not drown six of another.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xgenvideo.plan.published import Published
from xgenvideo.plan.rates import Rates
from xgenvideo.plan.textrun import text_step

Array = NDArray[np.float64]

NOISE = 0.06  # of a measured step: equal rows of one source differ by this much
STEP = 1e-3
ROUNDS = 16
# How far from its starting value a rate may go: the standard deviation of its logarithm. What is measured directly by
# others (products and attention alone) is held close, what differs between machines may go far.
TOLERANCE = {
    "matmul_ampere": 0.1,
    "matmul_hopper": 0.07,
    "clock_by_power": 0.5,
    "waves": 0.7,
    "inner": 0.5,
    "fp8": 0.2,
    "memory": 0.2,
    "nvlink": 0.2,
    "network": 0.4,
    "omni_path": 0.4,
    "bridge": 0.4,
    "latency": 0.7,
    "hop": 0.7,
    "batched": 0.4,
    "unaligned": 0.7,
    "softmax_passes": 0.3,
    "flash_ampere": 0.2,
    "flash_hopper": 0.2,
    "cudnn_hopper": 0.12,
    "eager": 0.3,
    "kernel": 0.7,
    "loss_bytes": 0.4,
    "accumulate_bytes": 0.3,
    "hidden_tensor": 0.2,
    "exposed_messages": 0.5,
    "exposed_messages_overlapped": 0.5,
    "exposed_data": 0.5,
    "exposed_shards": 0.5,
    "jitter": 0.7,
}
NAMES = tuple(TOLERANCE)


def usable(rows: Sequence[Published]) -> list[Published]:
    """The rows that have a run and a measured step."""
    return [row for row in rows if row.run is not None and row.measured_seconds]


def log_errors(rows: Sequence[Published], rates: Rates) -> Array:
    """Logarithm of predicted over measured step seconds. `rows` must be usable."""
    found = [
        math.log(text_step(row.run, rates).total / row.measured_seconds)
        for row in rows
        if row.run and row.measured_seconds
    ]
    return np.array(found)


def fit(rows: Sequence[Published], start: Rates | None = None) -> Rates:
    """The rates that fit `rows` best. `start` only saves rounds."""
    rows = usable(rows)
    sizes = Counter(row.family for row in rows)
    weight = np.array([sizes[row.family] ** -0.5 for row in rows])
    weight /= weight.mean()
    centre, tolerance = _log(Rates()), np.array([TOLERANCE[name] for name in NAMES])
    place = centre if start is None else _log(start)
    errors = log_errors(rows, _rates(place))
    cost = _cost(errors, weight, (place - centre) / tolerance)
    damping = 1e-2
    for _ in range(ROUNDS):
        slopes = _slopes(rows, place, errors)
        hard = weight / NOISE**2 / np.maximum(1.0, np.abs(errors) / NOISE)
        square = (slopes.T * hard) @ slopes + np.diag(tolerance**-2)
        gradient = (slopes.T * hard) @ errors + (place - centre) / tolerance**2
        move = np.clip(-np.linalg.solve(square + damping * np.diag(np.diag(square)), gradient), -0.5, 0.5)
        tried = log_errors(rows, _rates(place + move))
        new = _cost(tried, weight, (place + move - centre) / tolerance)
        if new >= cost:
            damping *= 8
            continue
        done, place, errors, cost = cost - new < 1e-4 * cost, place + move, tried, new
        damping = max(damping / 4, 1e-4)
        if done:
            break
    return _rates(place)


def leave_one_out(rows: Sequence[Published], fitted: Rates, groups: dict[str, str]) -> dict[str, float]:
    """Log error of every usable row predicted by rates fitted without its group; `groups` maps family to group."""
    rows = usable(rows)
    errors: dict[str, float] = {}
    for group in sorted(set(groups.values())):
        out = [row for row in rows if groups[row.family] == group]
        rates = fit([row for row in rows if groups[row.family] != group], fitted)
        errors |= {row.name: float(error) for row, error in zip(out, log_errors(out, rates), strict=True)}
    return errors


def in_folds(rows: Sequence[Published], fitted: Rates, folds: int = 5) -> dict[str, float]:
    """Log error of every usable row by rates that have seen its family but not it: every `folds`-th row is left out."""
    rows = usable(rows)
    errors: dict[str, float] = {}
    for fold in range(folds):
        out = rows[fold::folds]
        names = {row.name for row in out}
        rates = fit([row for row in rows if row.name not in names], fitted)
        errors |= {row.name: float(error) for row, error in zip(out, log_errors(out, rates), strict=True)}
    return errors


def _slopes(rows: Sequence[Published], place: Array, errors: Array) -> Array:
    columns = []
    for index in range(len(place)):
        moved = place.copy()
        moved[index] += STEP
        columns.append((log_errors(rows, _rates(moved)) - errors) / STEP)
    return np.stack(columns, axis=1)


def _cost(errors: Array, weight: Array, distance: Array) -> float:
    size = np.abs(errors) / NOISE
    huber = np.where(size < 1, 0.5 * size**2, size - 0.5)
    return float((weight * huber).sum() + 0.5 * (distance**2).sum())


def _log(rates: Rates) -> Array:
    logs: Array = np.log(np.array([getattr(rates, name) for name in NAMES]))
    return logs


def _rates(place: Array) -> Rates:
    values = dict(zip(NAMES, np.exp(place), strict=True))
    assert set(values) == {spec.name for spec in dataclasses.fields(Rates)}, (
        len(values),
        len(dataclasses.fields(Rates)),
    )
    return Rates(**{name: float(value) for name, value in values.items()})
