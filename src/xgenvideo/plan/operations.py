"""What a run costs around its steps: checkpoints and failures, goodput, data, energy, CO2, money.

Everything here that is not arithmetic is one of the named assumptions at the top; change them there.
"""

import math
from dataclasses import dataclass

from xgenvideo.config import RunConfig
from xgenvideo.plan.memory import MASTER_BYTES, MOMENTS_BYTES
from xgenvideo.plan.parameters import parameters

# Llama 3 405B: 419 unexpected interruptions in 54 days on 16,384 H100 (arXiv 2407.21783, section 3.3.4).
GPU_HOURS_A_FAILURE = 54 * 24 * 16_384 / 419
RESTART_SECONDS = 600.0  # assumption: notice, replace or drop the node, start, load
HOST_BYTES_PER_SECOND = 20e9  # assumption: one GPU's copy to pinned host memory, PCIe 5 x16 shared
STORAGE_BYTES_PER_SECOND = 100e9  # assumption: a Lustre file system of this class, all writers together
JPEG_FRAME_BYTES = 20e3  # assumption: one frame of 256 on the short side
POWER_USAGE_EFFECTIVENESS = 1.2  # assumption
NODE_OVERHEAD = 1.4  # a DGX H100's 10.2 kW over eight GPUs of 0.7 kW is 1.8 at most; assumption at the usual load
BUSY_POWER_SHARE = 0.8  # assumption: mean draw over the power limit while training
CO2_KILOGRAMS_PER_KWH = 0.37  # United States, EPA eGRID 2022 (823 lb/MWh)
DOLLARS_PER_GPU_HOUR = {"a100": 1.8, "h100": 2.5, "h200": 3.2, "b200": 4.5}  # assumptions: rented by the thousand
SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class Checkpoints:
    """One checkpoint's size and what saving and failing cost. `goodput`: share of the time that trains for good."""

    size_bytes: float
    stall_seconds: float
    write_seconds: float
    failure_hours: float
    best_interval_seconds: float
    best_interval_steps: int
    recipe_interval_steps: int
    goodput: float
    goodput_at_recipe_interval: float


@dataclass(frozen=True)
class DataDemand:
    """What the loaders must bring: pairs a second in all, bytes a second, and the whole set on disk."""

    pairs_per_second: float
    bytes_per_pair: float
    bytes_per_second: float
    set_bytes: float


@dataclass(frozen=True)
class Bill:
    """A run from its first step to its last, failures and checkpoints included."""

    steps: int
    days: float
    gpu_hours: float
    kilowatt_hours: float
    co2_tonnes: float
    dollars: float


def checkpoints(config: RunConfig, gpus: int, step_seconds: float) -> Checkpoints:
    """Size, stall, the best interval by Young and Daly (1974, 2006), and the goodput there and at the recipe's own."""
    size = float(parameters(config.model).trainable) * (MASTER_BYTES + MOMENTS_BYTES)
    stall = size / gpus / HOST_BYTES_PER_SECOND
    write = size / STORAGE_BYTES_PER_SECOND
    failure = GPU_HOURS_A_FAILURE / gpus * SECONDS_PER_HOUR
    # Writing goes on beside training, so a save costs its stall, and no save may start before the last is written.
    best = max(write, math.sqrt(2 * stall * failure))
    steps = max(1, round(best / step_seconds))
    own = config.train.save_every_steps
    return Checkpoints(
        size_bytes=size,
        stall_seconds=stall,
        write_seconds=write,
        failure_hours=failure / SECONDS_PER_HOUR,
        best_interval_seconds=best,
        best_interval_steps=steps,
        recipe_interval_steps=own,
        goodput=goodput(stall, write, failure, steps * step_seconds),
        goodput_at_recipe_interval=goodput(stall, write, failure, own * step_seconds),
    )


def goodput(stall: float, write: float, failure: float, interval: float, restart: float = RESTART_SECONDS) -> float:
    """Share of time that trains for good: less stalls, less what a failure undoes (half an interval, write, restart).

    All in seconds; `failure` is the mean time between failures of the whole machine.
    """
    lost = restart + write + interval / 2
    return interval / (interval + stall) * max(0.0, failure / (failure + lost))


def data_demand(config: RunConfig, step_seconds: float) -> DataDemand:
    """Frames as JPEG, or the encoder's features where they are cached: in 16 bits, or 8 and a scale of 32 a patch."""
    vision, frames = config.model.vision, config.data.frames
    cached = vision.patches * (vision.width + 4.0 if config.data.feature_type == "int8" else 2.0 * vision.width)
    pair = frames * (cached if config.data.cache_features else JPEG_FRAME_BYTES)
    each = config.train.global_batch_pairs / step_seconds
    return DataDemand(each, pair, each * pair, config.data.pairs_expected * pair)


def bill(gpu_name: str, watts: float, gpus: int, steps: int, step_seconds: float, share: float) -> Bill:
    """Days to money for `steps` steps at goodput `share`."""
    hours = steps * step_seconds / share / SECONDS_PER_HOUR
    drawn = watts * BUSY_POWER_SHARE * NODE_OVERHEAD * POWER_USAGE_EFFECTIVENESS / 1e3
    energy = hours * gpus * drawn
    price = DOLLARS_PER_GPU_HOUR.get(gpu_name, 0.0)
    return Bill(steps, hours / 24, hours * gpus, energy, energy * CO2_KILOGRAMS_PER_KWH / 1e3, hours * gpus * price)
