"""The benches run, and the table of the documentation is what their results say."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def bench(name: str) -> ModuleType:
    """A script of bench/ as a module."""
    specification = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_slice_runs_without_a_gpu_and_writes_nothing() -> None:
    before = sorted((ROOT / "bench" / "results").iterdir())
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "gpu.py"), "--small", "--device", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"six layers, TP[14] shape, \d+ tokens .* of the measured peak", done.stdout)) == 4
    assert "frozen encoder" in done.stdout
    assert sorted((ROOT / "bench" / "results").iterdir()) == before


def test_the_table_is_what_the_results_say() -> None:
    collect = bench("collect")
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = page.partition(collect.BEGIN)[2].partition(collect.END)[0].strip()
    assert shown == collect.table()


def test_the_quality_table_is_what_the_results_say() -> None:
    quality = bench("quality")
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    shown = page.partition(quality.BEGIN)[2].partition(quality.END)[0].strip()
    assert shown == "\n".join(quality.lines(json.loads(quality.RESULTS.read_text(encoding="utf-8"))))


def test_every_choice_is_trained_for_the_same_flops() -> None:
    quality = bench("quality")
    configs = [quality.config_of(choice, 0, 320, Path("data"), 21.3) for choice in quality.CHOICES + quality.LARGE]
    costs = [quality.run_flops(config, 21.3) for config in configs]
    assert max(costs) / min(costs) < 1.02
    assert len({config.train.steps for config in configs}) > 5


def test_only_ranges_that_do_not_meet_separate_a_choice() -> None:
    quality = bench("quality")

    def row(shift: float) -> dict[str, Any]:
        return {"seeds": 3} | {figure: {"low": 0.6 + shift, "high": 0.7 + shift} for figure in quality.FIGURES}

    assert "do not separate" in quality.verdict(row(0.09), row(0.0))
    assert quality.verdict(row(0.11), row(0.0)).count("better") == 1
    assert "worse on held-out loss" in quality.verdict(row(0.11), row(0.0))


def test_every_target_names_a_script_that_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    scripts = re.findall(r"python (bench/\w+\.py)", makefile)
    assert len(scripts) >= 8
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("side", ["latents", "tokens in the sequence"])
def test_both_sides_of_the_frames_bench_do_the_same_work(side: str) -> None:
    point = bench("frames").point(side, 4, 1)
    assert point["parameters"] == pytest.approx(8_500_000, rel=0.05)
    assert point["train_seconds"] > 0
    assert point["decode_seconds"] > 0
