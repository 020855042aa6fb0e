"""Energy that a run uses, from counters that the hardware keeps: GPUs through NVML, processors through RAPL.

Memory, disks, the network, power supplies and cooling are in neither. Where a counter cannot be read nothing is
estimated: the figure is missing.
"""

import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from xgenvideo.parallel.world import World

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Reading:
    """A counter's joules so far, and after how many it starts again at 0 (infinity: never)."""

    joules: float
    turns_at: float = math.inf


class EnergyMeter:
    """Joules between two calls, of all ranks together. A rank counts its GPU, a host's first rank its processors."""

    def __init__(self, world: World, powercap: Path = POWERCAP) -> None:
        self._world, self._powercap = world, powercap
        self._first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        self._last = self._read()

    def take(self) -> dict[str, float]:
        """`gpu_joules` and `cpu_joules` since the last call, each only where every counter of its kind was read.

        All ranks call. On a machine without GPUs there is no `gpu_joules`.
        """
        now, before = self._read(), self._last
        self._last = now
        device = self._world.device
        gpu, cpu = _used(before[0], now[0]), _used(before[1], now[1])
        own = [gpu if device.type == "cuda" else math.nan, cpu if self._first_here else 0.0]
        sums = self._world.sum(torch.tensor(own, dtype=torch.float64, device=device)).tolist()
        names = ("gpu_joules", "cpu_joules")
        return {name: value for name, value in zip(names, sums, strict=True) if math.isfinite(value)}

    def _read(self) -> tuple[dict[str, Reading], dict[str, Reading]]:
        """Counters by name: of this rank's GPU, and of this host's processors."""
        gpu = gpu_counter(self._world.device) if self._world.device.type == "cuda" else {}
        return gpu, cpu_counters(self._powercap) if self._first_here else {}


def _used(before: dict[str, Reading], now: dict[str, Reading]) -> float:
    """Joules between two readings of the same counters; not a number where there is none."""
    if not now or before.keys() != now.keys():
        return math.nan
    total = 0.0
    for name, reading in now.items():
        joules = reading.joules - before[name].joules
        total += joules if joules >= 0 else joules + reading.turns_at
    return total


def cpu_counters(powercap: Path) -> dict[str, Reading]:
    """Processor packages by RAPL, as Linux shows it; empty where there is none or it is for the superuser alone."""
    found = {}
    # Zones inside a package (intel-rapl:0:0) are counted in the package.
    for zone in sorted(powercap.glob("intel-rapl:[0-9]*")):
        if zone.name.count(":") != 1:
            continue
        try:
            if not (zone / "name").read_text(encoding="ascii").startswith("package"):
                continue
            joules, most = (
                int((zone / name).read_text(encoding="ascii")) / 1e6 for name in ("energy_uj", "max_energy_range_uj")
            )
        except (OSError, ValueError):
            return {}
        found[zone.name] = Reading(joules, most)
    return found


def gpu_counter(device: torch.device) -> dict[str, Reading]:
    """This GPU by NVML's total energy counter (since Volta); empty without nvidia-ml-py or without the counter."""
    if importlib.util.find_spec("pynvml") is None:
        return {}
    import pynvml

    name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(name)
        return {name: Reading(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3)}
    except pynvml.NVMLError:
        return {}
