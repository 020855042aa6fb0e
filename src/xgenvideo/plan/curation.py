"""What curating a data set costs, from what curation measured of itself: `curation.json` beside a dataset.

A step's processor seconds are divided by the inputs that came to it, and the shares that each step left are taken to
hold for more inputs of the same kind.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from xgenvideo.errors import ConfigError

SECONDS_PER_HOUR = 3600.0
CORES = 1000  # for which days are told
ALONE = frozenset(("templates", "duplicates", "balance"))  # steps of the one process that publishes
SHIPPED = "curation.json"


@dataclass(frozen=True)
class CurationStep:
    """A step over all inputs: how many come to it and are left after it, and its processor hours."""

    name: str
    came: float
    left: float
    core_hours: float


@dataclass(frozen=True)
class CurationPlan:
    """What it takes to keep `pairs` pairs. Bytes are None where the measured run did not have the files.

    `bookkeeping_hours`: of the process that reads the listing, judges by what was stored, and publishes.
    `measured_on`: what the costs were measured on; `measured_inputs`: how many of it. `core_hours_if_asked`: of steps
    that are off by default. Every judge runs on processors: no GPU hours.
    """

    pairs: int
    measured_on: str
    measured_inputs: int
    measured_kept: int
    steps: tuple[CurationStep, ...]
    core_hours_if_asked: dict[str, float]
    bookkeeping_hours: float
    video_bytes: float | None
    clip_bytes: float | None
    shard_bytes: float | None

    @property
    def inputs(self) -> float:
        """Pairs that must come in."""
        return self.pairs * self.measured_inputs / self.measured_kept

    @property
    def core_hours(self) -> float:
        """Processor hours of all steps that are on."""
        return sum(step.core_hours for step in self.steps)

    @property
    def alone_hours(self) -> float:
        """Hours in which one process works alone."""
        return self.bookkeeping_hours + sum(step.core_hours for step in self.steps if step.name in ALONE)

    def days(self, cores: int = CORES) -> float:
        """On so many cores: all of them busy with the clips, one of them with what is done by one process."""
        shared = sum(step.core_hours for step in self.steps if step.name not in ALONE)
        return (shared / cores + self.alone_hours) / 24


def plan_curation(pairs: int, dataset: Path | None = None) -> CurationPlan:
    """Plan the curation of `pairs` kept pairs by the costs of `dataset`, or by those shipped: the published samples of
    Panda-70M. Raises ConfigError for a folder without the record of a curation, or of one that kept nothing.
    """
    record, name = _read(dataset)
    try:
        return _scale(pairs, record, name)
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        why = f"is no record of a curation that kept something ({type(error).__name__}: {error})"
        raise ConfigError("--curated", name, f"{why}; give a folder that `xgv curate` wrote") from error


def _shipped() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("xgenvideo.plan").joinpath("facts", SHIPPED).read_text(encoding="utf-8"))
    return found


def _read(dataset: Path | None) -> tuple[Mapping[str, Any], str]:
    if dataset is None:
        found = _shipped()
        return found, str(found["measured_on"])
    path = dataset / SHIPPED
    try:
        return json.loads(path.read_bytes()), str(dataset)
    except (OSError, ValueError) as error:
        why = f"has no record of a curation ({path}: {error}); give a folder that `xgv curate` wrote"
        raise ConfigError("--curated", str(dataset), why) from error


def _scale(pairs: int, record: Mapping[str, Any], name: str) -> CurationPlan:
    came, kept, seconds = int(record["pairs_in"]), int(record["pairs_kept"]), record["timings"]
    factor, steps = pairs / kept, []
    for step, left in (record["funnel"] | {"write": kept}).items():
        if step in seconds and came:
            hours = seconds[step] * factor / SECONDS_PER_HOUR
            steps.append(CurationStep(step, came * factor, left * factor, hours))
        came = left
    sizes = {what: count * factor or None for what, count in record.get("bytes", {}).items()}
    extra = record.get("seconds_an_input_if_asked", {})
    inputs = pairs * record["pairs_in"] / kept
    return CurationPlan(
        pairs=pairs,
        measured_on=name,
        measured_inputs=int(record["pairs_in"]),
        measured_kept=kept,
        steps=tuple(steps),
        core_hours_if_asked={what: inputs * float(each) / SECONDS_PER_HOUR for what, each in extra.items()},
        bookkeeping_hours=inputs * float(_shipped()["bookkeeping_seconds_an_input"]) / SECONDS_PER_HOUR,
        video_bytes=sizes.get("videos"),
        clip_bytes=sizes.get("clips"),
        shard_bytes=sizes.get("shards"),
    )
