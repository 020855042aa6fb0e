"""The fitted coefficients: what kernels and links reach of a data sheet. Refit with `make planner-report`.

Each has a physical name and a unit, a starting value and how far from it the fit may go (fit.py). A run that the data
do not speak about is predicted with the starting value.
"""

import dataclasses
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from xgenvideo.errors import ConfigError


@dataclass(frozen=True)
class Rates:
    """Shares are of the data sheet's figure, in (0, 1] unless said; microseconds and passes are positive."""

    matmul_ampere: float = 0.85  # share of the peak that a large product reaches; cuBLAS on A100
    matmul_hopper: float = 0.72  # the same on Hopper and later, at full power
    clock_by_power: float = 0.4  # exponent: how the clock falls with the power limit
    waves: float = 0.3  # exponent of tile and wave quantisation: 0 none, 1 as if no kernel but 128 x 256 tiles existed
    inner: float = 150.0  # numbers along the inner axis that a tile's start and end cost
    fp8: float = 0.75  # share of the fp8 peak over the share of the bf16 peak
    memory: float = 0.75  # share of the memory bandwidth
    nvlink: float = 0.7
    network: float = 0.6
    omni_path: float = 0.35
    bridge: float = 80.0  # gigabytes a second of all-reduce between the two quad boards of a node
    latency: float = 15.0  # microseconds a collective
    hop: float = 1.0  # microseconds a rank of a ring over many nodes
    batched: float = 0.3  # share of the peak of unfused attention's small products
    unaligned: float = 0.1  # what is left of that where a head's size is no multiple of 8
    softmax_passes: float = 9.0  # passes over the score matrix by unfused attention, forward
    flash_ampere: float = 0.5  # share of the peak, flash attention (mma kernels)
    flash_hopper: float = 0.35  # the same kernels on Hopper
    cudnn_hopper: float = 0.57  # attention written for Hopper (cuDNN, flash attention 3)
    eager: float = 2.0  # times more passes where nothing is fused or compiled
    kernel: float = 4.0  # microseconds that a kernel costs beyond its work
    loss_bytes: float = 30.0  # bytes moved for each logit by the loss, forward and backward
    accumulate_bytes: float = 7.0  # bytes moved for each parameter and microbatch by unfused gradient accumulation
    hidden_tensor: float = 0.6  # share of tensor-parallel traffic hidden where the framework splits products for it
    exposed_messages: float = 1.0  # share of pipeline messages that nothing hides, blocking sends
    exposed_messages_overlapped: float = 0.5  # the same where sends run beside compute
    exposed_data: float = 0.3  # share of gradient traffic not hidden where the framework overlaps it
    exposed_shards: float = 0.15  # share of the smaller of compute and weight gathering added to the larger (FSDP)
    jitter: float = 0.5  # per cent a doubling of the nodes: every step waits for the slowest


FITTED = "rates.json"


def load_rates(path: Path | None = None) -> Rates:
    """The fitted rates shipped with the package, or those of a file. Raises ConfigError for a file of other content."""
    return read_rates(_text(path), str(path or FITTED))


def read_rates(text: str, name: str) -> Rates:
    """Rates from JSON whose object `rates` holds them. Raises ConfigError naming `name`."""
    try:
        values: dict[str, Any] = json.loads(text)["rates"]
        return Rates(**{spec.name: float(values[spec.name]) for spec in dataclasses.fields(Rates)})
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("rates", name, f"is no file of rates ({error}); make planner-report writes one") from error


def spread(generation: str) -> tuple[float, float]:
    """Factors for the low and the high end of a prediction: 90 % of left-out runs of `generation` fell between."""
    values = json.loads(_text(None))["spread"][generation]
    return float(values[0]), float(values[1])


def _text(path: Path | None) -> str:
    if path is None:
        return files("xgenvideo.plan").joinpath("facts", FITTED).read_text(encoding="utf-8")
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError("rates", str(path), f"cannot be read ({error})") from error
