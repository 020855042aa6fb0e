"""Saving beside training: what is saved is the moment of the call; retention; read-back; failures as configured."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from xgenvideo import cli
from xgenvideo.checkpoint import EPHEMERAL, PERMANENT, Retention, Saver, Snapshot, load, retain, save, standings
from xgenvideo.config import RunConfig
from xgenvideo.errors import CheckpointError


def snapshot(config: RunConfig, step: int, tensor: torch.Tensor) -> Snapshot:
    return Snapshot(step, config, {"model": {"weight": tensor}}, {"loader": {"samples_consumed": step}})


def test_training_may_change_its_tensors_at_once(small_config: RunConfig, tmp_path: Path) -> None:
    weight = torch.zeros(100_000)
    state: dict[str, Any] = {"list": [1]}
    with Saver(tmp_path, Retention(keep=9)) as saver:
        for step in range(1, 5):
            weight.fill_(step)
            state["list"][0] = step
            before = saver.save_async(Snapshot(step, small_config, {"model": {"weight": weight}}, state))
            weight.fill_(-1)
            state["list"][0] = -1
            assert (before is None) == (step == 1)
            assert before is None or (before.step, before.spoilt) == (step - 1, {})
    for step in range(1, 5):
        found = load(tmp_path / f"step-0000000{step}")
        assert torch.equal(found.tensors["model"]["weight"], torch.full((100_000,), float(step)))
        assert found.state == {"list": [step], "step": step}


def test_tensors_may_come_and_change_shape(small_config: RunConfig, tmp_path: Path) -> None:
    with Saver(tmp_path, Retention()) as saver:
        saver.save_async(snapshot(small_config, 1, torch.ones(3)))
        saver.save_async(snapshot(small_config, 2, torch.ones(4, dtype=torch.bfloat16)))
    assert load(tmp_path / "step-00000002").tensors["model"]["weight"].tolist() == [1.0] * 4


def test_permanent_ones_stay_and_ephemeral_ones_give_way(small_config: RunConfig, tmp_path: Path) -> None:
    kinds = {1: PERMANENT, 2: EPHEMERAL, 3: PERMANENT, 4: EPHEMERAL, 5: EPHEMERAL, 6: PERMANENT, 7: EPHEMERAL}
    left = []
    with Saver(tmp_path, Retention(keep=3)) as saver:
        for step, kind in kinds.items():
            saver.save_async(snapshot(small_config, step, torch.ones(3)), kind)
            saver.wait()
            left.append([standing.step for standing in standings(tmp_path)][::-1])
    assert left == [[1], [1, 2], [1, 2, 3], [1, 3, 4], [1, 3, 4, 5], [1, 3, 5, 6], [1, 3, 6, 7]]
    assert [standing.kind for standing in standings(tmp_path)] == [EPHEMERAL, PERMANENT, PERMANENT, PERMANENT]


def test_what_does_not_verify_is_not_counted(small_config: RunConfig, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, snapshot(small_config, step, torch.ones(3)), keep=9)
    (tmp_path / "step-00000003" / "state.json").write_text("spoilt")
    assert retain(tmp_path, keep=1) == []
    save(tmp_path, snapshot(small_config, 4, torch.ones(3)), keep=9)
    assert retain(tmp_path, keep=1) == [tmp_path / "step-00000001"]


def test_a_checkpoint_that_spoils_on_disk_is_found_in_the_background(small_config: RunConfig, tmp_path: Path) -> None:
    with Saver(tmp_path, Retention(keep=9)) as saver:
        for step in (1, 2):
            saver.save_async(snapshot(small_config, step, torch.ones(3)))
            saver.wait()
        damaged = tmp_path / "step-00000001" / "model.safetensors"
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
        found = {}
        for step in (3, 4, 5):
            saver.save_async(snapshot(small_config, step, torch.ones(3)))
            saved = saver.wait()
            assert saved is not None
            found |= saved.spoilt
    [(path, reason)] = found.items()
    assert path == tmp_path / "step-00000001"
    assert "SHA-256" in reason
    assert "SPOILT ON DISK" in str(saved) or path.name in reason


@pytest.mark.parametrize("allowed", [0, 2])
def test_failures_end_the_run_or_not_as_configured(
    small_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Saver(tmp_path, Retention(failures_allowed=allowed)) as saver:
        saver.save_async(snapshot(small_config, 1, torch.ones(3)))
        saver.wait()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            for step in range(2, 2 + allowed):
                saver.save_async(snapshot(small_config, step, torch.ones(3)))
                failed = saver.wait()
                assert failed is not None
                assert failed.path is None
                assert "No space left on device" in str(failed)
            saver.save_async(snapshot(small_config, 8, torch.ones(3)))
            with pytest.raises(CheckpointError, match=r"No space left on device.*earlier checkpoints are as they were"):
                saver.wait()
        saver.save_async(snapshot(small_config, 9, torch.ones(3)))
    assert [standing.step for standing in standings(tmp_path)] == [9, 1]
    assert not list(tmp_path.glob(".*")), "a failed save leaves nothing"


WRITER = """
import resource, sys, torch
from pathlib import Path
from xgenvideo import recipes
from xgenvideo.checkpoint import Retention, Saver, Snapshot, Ranks
from xgenvideo.errors import CheckpointError
config = recipes.find("tiny")
def snapshot(step, size):
    return Snapshot(step, config, {"model": {"weight": torch.ones(size)}}, {})
try:
    with Saver(Path(sys.argv[1]), Retention()) as saver:
        saver.save_async(snapshot(1, 100))
        saver.wait()
        if sys.argv[2] == "file too large":
            # The kernel refuses what goes beyond, in the middle of a write: as a full disk or a quota does.
            import signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        saver.save_async(snapshot(2, 100_000))
except CheckpointError as error:
    print(error)
"""


def test_a_write_that_the_kernel_cuts_short_is_one_plain_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path), "file too large"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert "step-00000002: cannot be saved ([Errno 27] File too large); free some space or mend the disk" in line
    assert [standing.reason for standing in standings(tmp_path)] == [""]
    assert not list(tmp_path.glob(".*"))


def test_a_folder_that_refuses_is_one_plain_sentence(small_config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(CheckpointError, match=r"cannot be saved \(.*(exists|directory).*\); free some space"):
        save(tmp_path / "checkpoints", snapshot(small_config, 1, torch.ones(3)), keep=2)


def test_the_verb_lists_verifies_and_prunes(
    small_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        save(folder, snapshot(small_config, step, torch.ones(3)), keep=9)
    small_config.save(tmp_path / "config.json")
    assert cli.main(["checkpoints", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("permanent, 1 ranks") == 3
    assert cli.main(["checkpoints", str(tmp_path), "--prune"]) == 0
    assert [standing.step for standing in standings(folder)] == [3, 2]
    (folder / "step-00000003" / "model.safetensors").write_bytes(b"")
    assert cli.main(["checkpoints", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert "corrupt: " in told.out
    assert "step-00000003 of 2 do not verify" in told.err
    assert cli.main(["checkpoints", str(tmp_path / "none")]) == 1
