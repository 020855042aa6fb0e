"""Search, solving, comparison, operations and traffic."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from xgenvideo import cli
from xgenvideo.config import override
from xgenvideo.errors import ConfigError
from xgenvideo.plan import plan
from xgenvideo.plan.communication import traffic
from xgenvideo.plan.hardware import H100, usual_cluster
from xgenvideo.plan.operations import GPU_HOURS_A_FAILURE, RESTART_SECONDS, bill, checkpoints, data_demand, goodput
from xgenvideo.plan.parameters import parameters
from xgenvideo.plan.report import machine_of
from xgenvideo.plan.search import layouts, search, step_flops
from xgenvideo.plan.solve import compare, solve
from xgenvideo.plan.timing import visual_ranks
from xgenvideo.recipes import find


def test_search_finds_better_than_the_recipe_within_the_memory() -> None:
    config = override(find("video_30b"), ["data.text_tokens=4096"])
    found = search(config, 512, machine_of("h100"))
    best = found.choices[0]
    assert found.own is not None
    assert found.own_stage_0 is not None
    assert best.step.total < found.own.step.total < found.own_stage_0.step.total
    assert found.place is not None
    assert found.choices[found.place - 1].step.total == pytest.approx(found.own.step.total)
    assert all(choice.memory_bytes <= H100.memory_bytes for choice in found.choices)
    seconds = [choice.step.total for choice in found.choices]
    assert seconds == sorted(seconds)
    peak = 512 * H100.bf16_flops_per_second * best.step.total
    assert best.mfu_quadratic == pytest.approx(step_flops(config).total_quadratic / peak)


def test_layouts_are_those_that_the_engine_takes() -> None:
    config = find("video_30b")
    for layout in layouts(config, 512, 8):
        plan(dataclasses.replace(config, layout=layout), 512, "h100")
    assert all(layout.tensor <= 8 for layout in layouts(config, 512, 8))


def test_search_is_light_and_needs_no_torch() -> None:
    code = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from xgenvideo import cli\n"
        "cli.main(['plan', 'video_30b', '--search'])\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())\n"
        "assert peak is None or int(peak[1]) < 300 * 1024, peak\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_too_few_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="no layout fits"):
        search(find("video_30b"), 1, machine_of("h100"))


def test_solving_for_each_of_the_three_agrees() -> None:
    config, machine = find("video_30b"), machine_of("h100")
    days = solve(config, 512, machine, 1024, 2.0, None).days
    assert solve(config, 512, machine, 1024, None, days).epochs == pytest.approx(2.0, rel=1e-3)
    assert solve(config, 512, machine, None, 2.0, days).text_tokens == pytest.approx(1024, abs=2)
    with pytest.raises(ConfigError, match="leave one"):
        solve(config, 512, machine, 1024, 2.0, days)
    with pytest.raises(ConfigError, match="too short"):
        solve(config, 512, machine, None, 2.0, 0.01)
    with pytest.raises(ConfigError, match="pairs_expected"):
        solve(find("tiny"), 1, machine, None, None, 1.0)


def test_comparison_covers_gpus_and_numbers() -> None:
    reports = compare(find("video_30b"), 512)
    days = {(report.gpu.name, report.gpus): report.estimates[0].bill.days for report in reports}
    assert days["b200", 512] < days["h200", 512] < days["h100", 512] < days["a100", 512]
    assert days["h100", 1024] < days["h100", 512] < 2.1 * days["h100", 1024]


def test_goodput_by_hand() -> None:
    config = find("video_30b")
    saved = checkpoints(config, 512, 10.0)
    assert saved.size_bytes == 12 * parameters(config.model).trainable
    assert saved.failure_hours == pytest.approx(GPU_HOURS_A_FAILURE / 512)
    assert goodput(0.0, 0.0, 1000.0, 100.0) == pytest.approx(1000 / (1000 + RESTART_SECONDS + 50))
    # The chosen interval is the best one.
    failure = saved.failure_hours * 3600
    near = [
        goodput(saved.stall_seconds, 0.0, failure, scale * math.sqrt(2 * saved.stall_seconds * failure))
        for scale in (0.5, 1, 2)
    ]
    assert max(near) == near[1]


def test_bill_and_data_by_hand() -> None:
    found = bill("h100", 700.0, 512, 1000, 36.0, 0.5)
    assert (found.days, found.gpu_hours) == (pytest.approx(20 / 24), pytest.approx(20 * 512))
    assert found.co2_tonnes == pytest.approx(found.kilowatt_hours * 0.37e-3)
    config = override(find("video_30b"), ["data.cache_features=true"])
    demand = data_demand(config, 2.0)
    assert demand.pairs_per_second == 1024
    assert demand.bytes_per_pair == 64 * 256 * 1664 * 2


def test_traffic_by_hand() -> None:
    config = find("video_30b")
    found = {each.kind: each for each in traffic(config, usual_cluster(H100))}
    message = 2 * (512 * 6144 + 256 * 1664) / 4
    assert found["pipeline"].bytes_per_step == pytest.approx(2 * 128 * message)
    assert found["tensor parallel"].link == "NVLink"
    assert found["replicas, decoder"].link == "network"
    assert not traffic(find("tiny"), usual_cluster(H100))


def test_separate_visual_ranks_come_in_whole_replicas() -> None:
    config = override(find("video_30b"), ["data.text_tokens=4096"])
    ranks = visual_ranks(config)
    assert ranks % config.layout.data == 0
    assert 0 < ranks < config.layout.world


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--search"], "layouts tried"),
        (["--compare"], "t CO2"),
        (["--days", "45"], "solved for epochs"),
        (["--days", "45", "--epochs", "1"], "solved for tokens a pair"),
        (["--tokens-per-pair", "4096"], "4,096 text tokens"),
    ],
)
def test_verb(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "video_30b", *arguments]) == 0
    assert says in capsys.readouterr().out
    assert cli.main(["plan", "video_30b", *arguments, "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_verb_writes_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "video_30b", "--timeline", str(tmp_path), "--plots", str(tmp_path)]) == 0
    assert "from the closed form" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {
        "days.svg",
        "memory.svg",
        "timeline_all_ranks.json",
        "timeline_all_ranks.svg",
        "timeline_stage_0.json",
        "timeline_stage_0.svg",
    }
    assert cli.main(["plan"]) == 2
    assert "RECIPE" in capsys.readouterr().err
