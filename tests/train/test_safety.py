"""Saves by the clock, stops by signal and clock, loss spikes, and the ledger that proves what was consumed."""

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xgenvideo.checkpoint import load, newest_verified, read_account
from xgenvideo.checkpoint.snapshot import EPHEMERAL, PERMANENT, read_commit, step_folders
from xgenvideo.cli.audit import audit
from xgenvideo.config import RunConfig, override
from xgenvideo.errors import CheckpointError, ConfigError, TrainError
from xgenvideo.train.log import read_metrics
from xgenvideo.train.loop import train
from xgenvideo.train.spikes import Spikes
from xgenvideo.train.stop import EXIT_WALL_CLOCK, stop_of

CHILD = """
import sys
from pathlib import Path
from xgenvideo import config
from xgenvideo.train.loop import train
train(config.load(Path(sys.argv[1])), Path(sys.argv[2]), quiet=True)
"""


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The trained tensors of the newest checkpoint."""
    return load(newest_verified(out / "checkpoints")).tensors["model"]


def assert_same_weights(one: Path, two: Path) -> None:
    """Bitwise."""
    first, second = weights(one), weights(two)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_run_none_of_whose_saves_succeeds_ends_with_one_sentence(
    run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> Path:
        raise CheckpointError("No space left on device")

    monkeypatch.setattr("xgenvideo.checkpoint.saver.write_staged", full)
    config = override(run_config, ["safety.failed_saves_allowed=3", "train.stop_after_steps=2"])
    with pytest.raises(TrainError, match="step 2 is done and no save has succeeded"):
        train(config, tmp_path, quiet=True)


def test_the_clock_saves_in_between_and_changes_nothing(run_config: RunConfig, tmp_path: Path) -> None:
    train(override(run_config, ["safety.save_every_minutes=0"]), tmp_path / "whole", quiet=True)
    config = override(run_config, ["safety.save_every_minutes=1e-6", "train.save_every_steps=100"])
    train(override(config, ["train.stop_after_steps=5"]), tmp_path / "often", quiet=True)
    kinds = {step: read_commit(path).kind for step, path in step_folders(tmp_path / "often" / "checkpoints")}
    # The last step of a call is permanent; of the ephemeral ones as many stay as make two.
    assert kinds == {5: PERMANENT, 4: EPHEMERAL}
    train(config, tmp_path / "often", quiet=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "often")
    account = read_account(tmp_path / "often")
    assert (account.lost, account.replayed, account.problems, account.attempts) == (0, 0, [], 2)
    assert any("lost 0, replayed 0" in line for line in audit(tmp_path / "often"))


def test_the_wall_clock_limit_saves_and_the_next_call_goes_on(run_config: RunConfig, tmp_path: Path) -> None:
    train(run_config, tmp_path / "whole", quiet=True)
    limited, out = override(run_config, ["safety.wall_clock_minutes=1e-6"]), tmp_path / "limited"
    for step in (1, 2):
        with pytest.raises(SystemExit) as ended:
            train(limited, out, quiet=True)
        assert ended.value.code == EXIT_WALL_CLOCK
        stopped = stop_of(out)
        assert stopped is not None
        assert "safety.wall_clock_minutes" in stopped.reason
        assert step_folders(out / "checkpoints")[0][0] == step
    assert train(run_config, out, quiet=True).finished
    assert stop_of(out) is None
    assert_same_weights(tmp_path / "whole", out)


def test_slurms_warning_saves_and_a_second_one_changes_nothing(run_config: RunConfig, tmp_path: Path) -> None:
    config = override(run_config, ["train.steps=100000", "train.save_every_steps=100000", "train.log_every_steps=1"])
    config.save(tmp_path / "config.json")
    out = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "config.json"), str(out)])
    while not (out / "metrics.jsonl").exists() and child.poll() is None:
        pass
    child.send_signal(signal.SIGUSR1)
    child.send_signal(signal.SIGUSR1)
    assert child.wait(60) == 128 + signal.SIGUSR1
    [(step, path)] = step_folders(out / "checkpoints")
    assert (read_commit(path).kind, json.loads((out / "stopped.json").read_text())["step"]) == (EPHEMERAL, step)


def spiking(config: RunConfig, rewinds: int) -> RunConfig:
    """A learning rate that rises until the loss does."""
    spikes = ["safety.spike_window=5", "safety.spike_factor=1.05", f"safety.spike_rewinds={rewinds}", "train.steps=60"]
    spikes += ["optimizer.lr=1.0", "optimizer.warmup_fraction=0.3", "train.save_every_steps=2"]
    return override(config, [*spikes, "train.log_every_steps=1"])


def test_a_spike_goes_back_passes_over_the_batches_and_is_accounted_for(
    run_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = spiking(run_config, 2)
    with pytest.raises(TrainError, match="the loss spiked, after going back 2 times"):
        train(config, tmp_path / "run")
    told = capsys.readouterr().err
    assert told.count("samples are passed over") == 2
    account = read_account(tmp_path / "run")
    assert (account.lost, account.replayed, account.problems, account.attempts) == (0, 0, [], 3)
    assert account.skipped > 0
    assert account.skipped % config.train.global_batch_pairs == 0
    assert any("lost 0, replayed 0" in line for line in audit(tmp_path / "run"))
    steps = [row["step"] for row in read_metrics(tmp_path / "run")]
    assert steps == sorted(set(steps))


def test_ways_back_are_counted_over_calls_of_the_program(
    run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(spiking(run_config, 2), ["optimizer.lr=1e-3"])
    train(override(config, ["train.stop_after_steps=2"]), tmp_path, quiet=True)
    for stop in (4, 6):
        losses = itertools.count()
        monkeypatch.setattr(Spikes, "seen", lambda spikes, loss, losses=losses: next(losses) == 0)
        train(override(config, [f"train.stop_after_steps={stop}"]), tmp_path, quiet=True)
    monkeypatch.setattr(Spikes, "seen", lambda spikes, loss: True)
    with pytest.raises(TrainError, match="step 7: the loss spiked, after going back 2 times"):
        train(config, tmp_path, quiet=True)
    assert read_account(tmp_path).skipped == 2 * config.train.global_batch_pairs


def test_no_way_back_from_a_spike_is_one_sentence(run_config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"the loss spiked.*lower optimizer\.lr"):
        train(spiking(run_config, 0), tmp_path / "run", quiet=True)


def test_a_spike_needs_a_whole_window_and_the_window_travels(run_config: RunConfig) -> None:
    config = override(run_config, ["safety.spike_window=5", "safety.spike_factor=2.0"]).safety
    recent: list[float] = []
    spikes = Spikes(config, recent)
    assert not any(spikes.seen(loss) for loss in (1.0, 9.0, 1.0, 1.0, 1.0))
    assert spikes.seen(2.1)
    assert not spikes.seen(1.9)
    assert not spikes.seen(float("nan"))
    assert recent == [9.0, 1.0, 1.0, 1.0, 1.9]
    with pytest.raises(ConfigError, match=r"safety\.spike_factor = 0\.5"):
        override(run_config, ["safety.spike_factor=0.5"])
