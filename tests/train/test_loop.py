"""The loop: resumes bitwise after stops and kills, keeps one log, refuses what would spoil a run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from xgenvideo.checkpoint import load, load_run, newest_verified, take_lease
from xgenvideo.checkpoint.snapshot import step_folders
from xgenvideo.config import RunConfig, override
from xgenvideo.errors import CheckpointError, ConfigError, DataError, TrainError
from xgenvideo.models.video_lm import trainable_state
from xgenvideo.train.loop import train

CHILD = """
import sys
from pathlib import Path
from xgenvideo import config
from xgenvideo.train.loop import train
train(config.load(Path(sys.argv[1])), Path(sys.argv[2]), quiet=True)
"""
CLOCK = ("seconds_per_step", "tokens_per_second", "pairs_per_second", "mfu", "mfu_full_square", "hfu", "peak_rss_mb")


def final_tensors(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest verified checkpoint."""
    tensors = load(newest_verified(out / "checkpoints")).tensors
    return {f"{part}.{name}": tensor for part, named in tensors.items() for name, tensor in named.items()}


def computed(out: Path) -> list[dict[str, Any]]:
    """The log's lines without what the clock says."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCK} for line in lines]


def assert_same_run(one: Path, two: Path) -> None:
    """Same weights, optimizer and random state, bitwise, and the same log."""
    first, second = final_tensors(one), final_tensors(two)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert computed(one) == computed(two)


def start(config: RunConfig, out: Path) -> "subprocess.Popen[bytes]":
    """Train in another process."""
    file = out.parent / f"{out.name}.json"
    config.save(file)
    command = [sys.executable, "-W", "error", "-c", CHILD, str(file), str(out)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait_for(path: Path, child: "subprocess.Popen[bytes]", seconds: float = 120) -> None:
    """Wait until `path` exists or the child has ended."""
    deadline = time.monotonic() + seconds
    while not path.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


def test_stopped_and_resumed_is_bitwise_the_uninterrupted_run(run_config: RunConfig, tmp_path: Path) -> None:
    whole = train(run_config, tmp_path / "whole", quiet=True)
    assert (whole.step, whole.finished, whole.pairs_seen) == (8, True, 32)
    for stop in (2, 5, 0):
        found = train(override(run_config, [f"train.stop_after_steps={stop}"]), tmp_path / "parts", quiet=True)
        assert found.step == (stop or 8)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert [line["step"] for line in computed(tmp_path / "parts")] == [1, 2, 4, 6, 8]
    before = sorted(path for path in (tmp_path / "parts" / "checkpoints").rglob("*"))
    again = train(run_config, tmp_path / "parts", quiet=True)
    assert (again.loss_first, again.loss_last, again.checkpoint.name) == (
        whole.loss_first,
        whole.loss_last,
        "step-00000008",
    )
    assert sorted(path for path in (tmp_path / "parts" / "checkpoints").rglob("*")) == before


def test_several_microbatches_resume_bitwise_too(run_config: RunConfig, tmp_path: Path) -> None:
    config = override(run_config, ["layout.microbatch_pairs=2", "train.steps=4"])
    train(config, tmp_path / "whole", quiet=True)
    for stop in (1, 0):
        train(override(config, [f"train.stop_after_steps={stop}"]), tmp_path / "parts", quiet=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def kill_and_resume(config: RunConfig, out: Path, seed: int, kills: int) -> int:
    """Start the run again and again, SIGKILL each at a seeded moment after its first save; then let it end."""
    rng, done = random.Random(seed), 0
    for _ in range(kills):
        known = {path.name for _, path in step_folders(out / "checkpoints")}
        child = start(config, out)
        deadline = time.monotonic() + 120
        while child.poll() is None and time.monotonic() < deadline:
            if {path.name for _, path in step_folders(out / "checkpoints")} - known:
                break
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        child.kill()
        done += child.wait() == -signal.SIGKILL
    child = start(config, out)
    assert child.wait(120) == 0
    return done


@pytest.mark.parametrize(("seed", "kills"), [(0, 2), pytest.param(1, 8, marks=pytest.mark.slow)])
def test_killed_at_any_time_ends_with_the_same_weights(
    run_config: RunConfig, tmp_path: Path, seed: int, kills: int
) -> None:
    # A save at every step: about half of the time is spent saving, so kills land in saves too.
    config = override(run_config, ["train.steps=20", "train.save_every_steps=1", "train.threads=1"])
    train(config, tmp_path / "whole", quiet=True)
    done = kill_and_resume(config, tmp_path / "killed", seed, kills)
    assert done >= kills // 2, "too few children were killed before they had ended"
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert not [path for path in (tmp_path / "killed" / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_the_step_saves_and_is_told_by_the_exit_code(
    run_config: RunConfig, tmp_path: Path, number: signal.Signals
) -> None:
    config = override(run_config, ["train.steps=100000", "train.save_every_steps=100000", "train.log_every_steps=1"])
    out = tmp_path / "run"
    child = start(config, out)
    wait_for(out / "metrics.jsonl", child)
    child.send_signal(number)
    assert child.wait(60) == 128 + number
    [(step, _)] = step_folders(out / "checkpoints")
    assert step >= 1
    assert computed(out)[-1]["step"] == step


def test_a_corrupt_checkpoint_is_passed_over_kept_and_made_again(
    run_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(run_config, tmp_path / "whole", quiet=True)
    train(override(run_config, ["train.stop_after_steps=6"]), out, quiet=True)
    newest = step_folders(out / "checkpoints")[0][1] / "model.safetensors"
    flipped = bytearray(newest.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    newest.write_bytes(flipped)
    train(run_config, out)
    told = capsys.readouterr().err
    assert "passed over" in told
    assert "model.safetensors: SHA-256 is" in told
    assert f"resume: {out / 'checkpoints' / 'step-00000003'}" in told
    assert_same_run(tmp_path / "whole", out)
    [aside] = (out / "checkpoints").glob("corrupt-*")
    assert (aside / "model.safetensors").read_bytes() == flipped


def test_never_restarts_over_a_run_whose_checkpoints_are_all_corrupt(run_config: RunConfig, tmp_path: Path) -> None:
    train(override(run_config, ["train.stop_after_steps=4"]), tmp_path, quiet=True)
    for _, path in step_folders(tmp_path / "checkpoints"):
        (path / "COMMIT.json").unlink()
    with pytest.raises(TrainError, match=r"none of its checkpoints verifies.*did not finish"):
        train(run_config, tmp_path, quiet=True)


def test_settings_that_decide_what_is_learnt_may_not_change(run_config: RunConfig, tmp_path: Path) -> None:
    train(override(run_config, ["train.stop_after_steps=1"]), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match=r"optimizer\.lr was 0\.002, is 0\.5, objective\.contrastive was"):
        train(override(run_config, ["optimizer.lr=0.5", "objective.contrastive=sigmoid"]), tmp_path, quiet=True)
    with pytest.raises(ConfigError, match=r"model\.resampler\.queries was 8, is 4"):
        train(override(run_config, ["model.resampler.queries=4"]), tmp_path, quiet=True)


def test_settings_that_do_not_may(run_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(override(run_config, ["train.steps=2"]), tmp_path, quiet=True)
    changed = override(run_config, ["train.steps=4", "train.log_every_steps=1", "train.keep_checkpoints=3"])
    assert train(changed, tmp_path).step == 4
    assert "changed: train.steps 2 -> 4" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"train\.steps = 3: must be at least the 4 steps done"):
        train(override(changed, ["train.steps=3"]), tmp_path, quiet=True)


def test_another_frozen_encoder_is_refused(run_config: RunConfig, tmp_path: Path) -> None:
    train(override(run_config, ["train.stop_after_steps=1"]), tmp_path, quiet=True)
    with pytest.raises(CheckpointError, match="was trained with the frozen encoder"):
        train(override(run_config, ["model.vision.weights=random:1"]), tmp_path, quiet=True)


def test_a_directory_in_use_is_refused(run_config: RunConfig, tmp_path: Path) -> None:
    with take_lease(tmp_path), pytest.raises(TrainError, match=f"in use by process {os.getpid()} on"):
        train(run_config, tmp_path, quiet=True)


def test_ranks_that_are_not_there_are_asked_for(run_config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"layout\.data = 2: .* 2 ranks, 1 are there\. Valid: 1"):
        train(override(run_config, ["layout.data=2", "layout.microbatch_pairs=2"]), tmp_path, quiet=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("shards", "error"), [("", ConfigError), ("nowhere", DataError)])
def test_a_missing_dataset_is_named(run_config: RunConfig, tmp_path: Path, shards: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=shards or r"data\.shards"):
        train(override(run_config, [f"data.shards={shards}"]), tmp_path, quiet=True)


def test_a_run_that_never_is_finite_ends(
    run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xgenvideo.train.step.clip_gradients", lambda pieces, limit, world: torch.tensor(float("nan")))
    with pytest.raises(TrainError, match="10 steps in a row were not finite"):
        train(override(run_config, ["train.steps=50"]), tmp_path, quiet=True)
    rows = computed(tmp_path)
    assert [row["skipped_steps"] for row in rows] == list(range(1, 10))
    assert all(row["grad_norm"] is None for row in rows)


def test_cached_features_train_and_are_made_once(run_config: RunConfig, tmp_path: Path) -> None:
    config = override(run_config, ["data.cache_features=true", "train.stop_after_steps=2"])
    train(config, tmp_path / "one", quiet=True)
    folder = Path(config.data.shards).with_name(Path(config.data.shards).name + ".features")
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert made
    train(config, tmp_path / "two", quiet=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == made
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_the_model_of_a_run_is_the_trained_one(run_config: RunConfig, tmp_path: Path) -> None:
    summary = train(override(run_config, ["train.stop_after_steps=2"]), tmp_path, quiet=True)
    found = load_run(tmp_path)
    assert (found.step, found.checkpoint) == (2, summary.checkpoint)
    assert not found.model.training
    saved = load(summary.checkpoint).tensors["model"]
    own = trainable_state(found.model)
    assert own.keys() == saved.keys()
    assert all(torch.equal(own[name], saved[name]) for name in own)
    assert found.tokenizer.size <= run_config.model.decoder.vocab


@pytest.mark.parametrize("name", ["dataset.json", "pairs.jsonl", "release.json"])
def test_a_folder_of_something_else_is_no_run(small_config: RunConfig, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(TrainError, match=f"it holds {name}; give a new or empty folder"):
        train(small_config, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
