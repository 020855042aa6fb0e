"""The benches run, and the table of the documentation is what their results say."""

import functools
import importlib
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def beside_the_benches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benches import each other."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


def bench(name: str) -> ModuleType:
    """A script of bench/ as a module."""
    specification = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted((ROOT / "bench" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_every_result_says_where_it_was_measured(path: Path) -> None:
    about = json.loads(path.read_text(encoding="utf-8"))["about"]
    assert all(about[name] for name in bench("fair").ABOUT)
    assert about["machine"]["cores"] > 0
    assert about["versions"]["torch"]


def test_results_are_written_with_machine_versions_commit_and_date(tmp_path: Path) -> None:
    fair = bench("fair")
    fair.write(tmp_path / "one.json", {"about": {"rounds": 3}, "rows": [1]}, "numpy")
    written = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    assert set(written["about"]) == {"rounds", *fair.ABOUT}
    assert {"xgenvideo", "torch", "numpy"} <= set(written["about"]["versions"])
    assert written["rows"] == [1]


def test_a_disturbed_round_is_measured_again() -> None:
    fair = bench("fair")
    rounds = iter([(1.2, 1.0), (1.05, 1.0), (3.0, 3.0)])
    assert fair.clean_round(lambda: next(rounds)) == 1.05
    with pytest.raises(SystemExit, match="too busy"):
        fair.clean_round(lambda: (2.0, 1.0))


def test_sides_take_turns_and_each_ratio_is_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    fair = bench("fair")
    monkeypatch.setattr(fair, "MOST_WALL", math.inf)
    order: list[str] = []
    taken = fair.alternate({name: functools.partial(order.append, name) for name in "ab"}, 10)
    assert [len(seconds) for seconds in taken.values()] == [10, 10]
    assert "".join(order) == "baab" * 6
    assert fair.quartiles([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == [2.0, 2.0, 2.0]


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
    assert len(re.findall(r"of 790, \S+ of the data sheet, .* GB, planned", done.stdout)) >= 10
    assert len(re.findall(r"fp8 over bf16, tokens a second: \d", done.stdout)) == 4
    assert "frozen encoder" in done.stdout
    assert "790 by an H100, 989 by the data sheet" in done.stdout
    assert len(re.findall(r"one_gpu, whole step, (batches from the loader|one kept batch) ", done.stdout)) == 2
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
def test_both_sides_of_the_frames_bench_do_the_same_work(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("fair"), "MOST_WALL", math.inf)
    point = bench("frames").point(side, 4, 1)
    assert point["parameters"] == pytest.approx(8_500_000, rel=0.05)
    assert point["train_seconds"] > 0
    assert point["decode_seconds"] > 0


def readme_claims() -> dict[str, str]:
    """What the README claims, word for word -> the row that holds it up."""
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    table = page.partition("| the README says |")[2].partition("<!-- end of claims -->")[0]
    rows = (line.strip("| ").partition(" | ") for line in table.splitlines()[2:] if line)
    return {claim: row for claim, _, row in rows}


def test_no_claim_of_the_readme_lacks_a_row() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    measured = [line.strip("| ") for line in bench("collect").table().splitlines()]
    for claim, row in readme_claims().items():
        section = row.removesuffix(", below")
        held = f"\n## {section}" in page if section != row else any(line.startswith(row) for line in measured)
        assert held, f"{claim!r}: no row {row!r}"


def test_every_figure_of_the_readme_is_in_a_claim() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    prose = " ".join(" ".join(line for line in readme.splitlines() if not line.startswith("    ")).split())
    for claim in readme_claims():
        assert claim in prose, f"the README does not say {claim!r}"
        prose = prose.replace(claim, "")
    said = re.sub(r"`[^`]*`|\([^)]*\)", "", prose)
    assert set(re.findall(r"(?<![\w.])\d[\d.,]*\d|(?<![\w.,])\d", said)) == {"3.11", "2.0"}, (
        "Python's version and the licence's alone"
    )
