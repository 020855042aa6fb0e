"""Energy from the hardware's counters: what is read, counters that turn, and nothing where nothing can be read."""

import sys
import types
from pathlib import Path

import pytest
import torch

from xgenvideo.parallel.world import World
from xgenvideo.train.energy import EnergyMeter, Reading, cpu_counters, gpu_counter


def zone(powercap: Path, name: str, label: str, joules: float, most: float = 262143.0) -> None:
    folder = powercap / name
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in (("name", label), ("energy_uj", int(joules * 1e6)), ("max_energy_range_uj", int(most * 1e6))):
        (folder / file).write_text(f"{text}\n", encoding="ascii")


@pytest.fixture
def world() -> World:
    return World(0, 1, torch.device("cpu"))


def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path, world: World) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 100)
    zone(tmp_path, "intel-rapl:1", "package-1", 50)
    zone(tmp_path, "intel-rapl:0:0", "core", 70)
    zone(tmp_path, "intel-rapl:2", "psys", 900)
    meter = EnergyMeter(world, tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 130)
    zone(tmp_path, "intel-rapl:1", "package-1", 55)
    assert meter.take() == {"cpu_joules": pytest.approx(35)}
    assert meter.take() == {"cpu_joules": 0.0}


def test_a_counter_that_turned_is_read_on(tmp_path: Path, world: World) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 990, most=1000)
    meter = EnergyMeter(world, tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 15, most=1000)
    assert meter.take() == {"cpu_joules": pytest.approx(25)}


def test_where_nothing_can_be_read_nothing_is_said(tmp_path: Path, world: World) -> None:
    assert EnergyMeter(world, tmp_path / "nowhere").take() == {}
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    meter = EnergyMeter(world, tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not a number", encoding="ascii")
    assert cpu_counters(tmp_path) == {}
    assert meter.take() == {}


def test_only_a_hosts_first_rank_counts_processors(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    meter = EnergyMeter(world, tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 9)
    assert meter.take() == {"cpu_joules": 0.0}


def test_a_gpu_is_asked_for_by_its_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's calls as nvidia-ml-py has them, by a stand-in: there is no GPU here."""
    asked: list[str] = []
    nvml = types.ModuleType("pynvml")
    nvml.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    nvml.NVMLError = RuntimeError  # type: ignore[attr-defined]
    nvml.nvmlInit = lambda: None  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetHandleByUUID = lambda name: asked.append(name) or "handle"  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 123_456  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="abc"))
    assert gpu_counter(torch.device("cuda:0")) == {"GPU-abc": Reading(123.456)}
    assert asked == ["GPU-abc"]
