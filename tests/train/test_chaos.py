"""The fault injector on real runs: a seeded part of the campaign, and that it finds what is broken."""

import json
import pickle
from pathlib import Path

import pytest

from xgenvideo import cli, recipes
from xgenvideo.checkpoint.run import CHECKPOINTS
from xgenvideo.config import override
from xgenvideo.errors import ConfigError
from xgenvideo.train.chaos import run_chaos
from xgenvideo.train.chaos.damage import bomb, flipped_bits, pickles
from xgenvideo.train.chaos.ends import end_of
from xgenvideo.train.chaos.setting import small_dataset, small_run
from xgenvideo.train.loop import train

DISTURBED = ["train.steps=8"]


def test_kills_and_faults_break_no_promise(tmp_path: Path) -> None:
    said: list[str] = []
    faults = ["kill", "second_job", "nan"]
    found = run_chaos(recipes.find("tiny"), tmp_path, 5, [1], faults, seed=3, say=said.append)
    broken = [verdict for verdict in found["faults"] if not verdict["held"]]
    assert broken == []
    assert found["kill_points"] >= 5
    assert found["kill_points_in_save"] >= 2
    assert (found["samples_lost"], found["samples_replayed"], found["bitwise_equal"]) == (0, 0, True)
    assert 0 < found["steps_redone_max"] <= found["interval_steps"] + 1
    assert 0 < found["goodput"] < 1
    assert 0 < found["goodput_predicted"] < 1
    assert {verdict["fault"] for verdict in found["faults"]} == {"kill", "second_job", "nan_gradient"}
    json.dumps(found)


@pytest.mark.slow
def test_kills_on_two_ranks_and_the_rest_of_the_faults(tmp_path: Path) -> None:
    faults = ["kill", "damage", "damaged_resume", "hang", "stop", "worker_kill", "slow", "clock", "disk"]
    found = run_chaos(recipes.find("tiny"), tmp_path, 6, [2], faults, seed=4, say=print)
    assert [verdict for verdict in found["faults"] if not verdict["held"]] == []
    assert found["kill_points_in_save"] >= 3


def test_damage_is_noticed_and_another_run_is_another(tmp_path: Path) -> None:
    config = override(small_run(recipes.find("tiny"), small_dataset(tmp_path / "dataset"), 1), DISTURBED)
    whole, other = tmp_path / "whole", tmp_path / "other"
    train(config, whole, quiet=True)
    assert pickles(whole, tmp_path / "scratch").held
    # What the bomb would have done.
    pickle.loads(bomb(tmp_path / "it-ran"))
    assert (tmp_path / "it-ran").exists()
    assert flipped_bits(whole, tmp_path / "scratch", 1).held
    # A run of another seed is not taken for the same, or the comparison would prove nothing.
    train(override(config, ["train.seed=1"]), other, quiet=True)
    end = end_of(other, whole)
    assert not end.same
    assert any(name.startswith("model/") for name in end.differences)
    assert len(list((whole / CHECKPOINTS).glob("step-*"))) == 2


def test_what_cannot_be_tried_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="--faults = 'earthquake': no such fault"):
        run_chaos(recipes.find("tiny"), tmp_path, faults=["earthquake"])
    assert cli.main(["chaos", "tiny", "--out", str(tmp_path), "--processes", "3"]) == 2
    assert "--processes = 3" in capsys.readouterr().err
