"""The log and its figures."""

import json
import math
from pathlib import Path

import pytest
import torch

from xgenvideo.config import RunConfig
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.plan.flops import training_flops
from xgenvideo.train.hardware import extra_flops
from xgenvideo.train.log import Log, keep_until, read_metrics
from xgenvideo.train.metrics import Meter, Metrics, Peak, machine_peak, row_of

STEP = Metrics(3, True, 2.0, 1.5, 0.5, 0.9, 1e-3, 8, 100, 128, 16, 0)


def test_a_resumed_log_has_no_step_twice_and_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    keep_until(path, 3)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    with Log(tmp_path, 3, 10, quiet=True) as log:
        log.write({"step": 4, "loss": None, "gates": {"3.mlp_gate": 0.5}})
        log.sync()
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_without_a_terminal_there_are_lines_and_quiet_means_quiet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for quiet in (True, False):
        with Log(tmp_path, 0, 10, quiet) as log:
            log.advance(1, 2.5)
            log.write({"step": 1, "loss": 2.5, "mfu": None})
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err == ("" if quiet else "step 1/10: loss 2.5\n")


def test_mfu_is_the_planners_flops_over_the_peak(small_config: RunConfig) -> None:
    meter = Meter(small_config, Peak(1e9, "a test"))
    meter.add(STEP, 0.5)
    meter.add(STEP, 1.5)
    rates = meter.take()
    flops = training_flops(small_config, 8, 128, 16, 0)
    assert rates["mfu"] == pytest.approx(2 * flops.total / 2.0 / 1e9)
    assert rates["mfu_full_square"] == pytest.approx(2 * flops.total_quadratic / 2.0 / 1e9)
    assert rates["hfu"] == pytest.approx(2 * (flops.total_quadratic + extra_flops(small_config, 128, 16)) / 2.0 / 1e9)
    assert rates["mfu"] < rates["mfu_full_square"] < rates["hfu"]
    assert (rates["pairs_per_second"], rates["tokens_per_second"], rates["seconds_per_step"]) == (8, 100, 1)
    meter.add(STEP, 4.0)
    assert meter.take()["seconds_per_step"] == 4


def test_a_row_is_json_even_when_the_loss_is_not_a_number(small_model: VideoLM) -> None:
    broken = Metrics(3, False, math.nan, math.nan, 0.5, math.inf, 1e-3, 8, 100, 128, 16, 0)
    told = row_of(broken, small_model, small_model.gates(), {"mfu": 0.1}, 1)
    row = json.loads(json.dumps(told, allow_nan=False))
    assert (row["step"], row["loss"], row["grad_norm"], row["skipped_steps"]) == (3, None, None, 1)
    assert set(row["gates"].values()) == {float(torch.tensor(0.7).tanh())}


def test_the_peak_is_measured_once(tmp_path: Path) -> None:
    memo = tmp_path / "machine.json"
    first = machine_peak(torch.device("cpu"), "fp32", memo)
    assert 1e9 < first.flops_per_second < 1e14
    assert machine_peak(torch.device("cpu"), "fp32", memo) == first
    memo.write_text("not JSON")
    assert "matrix product" in machine_peak(torch.device("cpu"), "fp32", memo).source
