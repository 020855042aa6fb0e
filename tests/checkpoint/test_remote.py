"""Copies elsewhere: whole or not at all, verified on the way back, and a failing copy fails nothing else."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from xgenvideo import cli
from xgenvideo.checkpoint import newest_verified
from xgenvideo.checkpoint.remote import pull, push
from xgenvideo.config import RunConfig, override
from xgenvideo.errors import CheckpointError
from xgenvideo.train.loop import train

URL = "memory://bucket/run"


@pytest.fixture
def bucket() -> Iterator[fsspec.AbstractFileSystem]:
    """An object store in memory, emptied afterwards."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/bucket", recursive=True)


def test_every_checkpoint_is_copied_and_a_lost_run_goes_on_from_the_copy(
    run_config: RunConfig, tmp_path: Path, bucket: fsspec.AbstractFileSystem
) -> None:
    config = override(run_config, [f"safety.copy_to={URL}", "train.save_every_steps=2", "train.stop_after_steps=6"])
    train(config, tmp_path / "run", quiet=True)
    assert sorted(bucket.ls("/bucket/run", detail=False)) == [f"/bucket/run/step-0000000{step}" for step in (2, 4, 6)]
    brought = pull(URL, tmp_path / "new" / "checkpoints")
    assert [path.name for path in brought] == [f"step-0000000{step}" for step in (6, 4, 2)]
    assert pull(URL, tmp_path / "new" / "checkpoints") == []
    assert newest_verified(tmp_path / "new" / "checkpoints").name == "step-00000006"
    done = train(override(run_config, ["train.stop_after_steps=0"]), tmp_path / "new", quiet=True)
    assert done.finished


def test_a_damaged_copy_is_refused_and_one_without_its_commit_is_none(
    run_config: RunConfig, tmp_path: Path, bucket: fsspec.AbstractFileSystem
) -> None:
    train(override(run_config, ["train.steps=1"]), tmp_path / "run", quiet=True)
    target = push(newest_verified(tmp_path / "run" / "checkpoints"), URL)
    path = f"{target}/model.safetensors"
    content = bytearray(bucket.cat_file(path))
    content[len(content) // 2] ^= 1
    bucket.pipe_file(path, bytes(content))
    with pytest.raises(CheckpointError, match="cannot be brought"):
        pull(URL, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    bucket.rm(f"{target}/COMMIT.json")
    with pytest.raises(CheckpointError, match="holds no committed checkpoint"):
        pull(URL, tmp_path / "new")


def test_a_copy_that_fails_is_told_and_the_run_goes_on(
    run_config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    config = override(run_config, [f"safety.copy_to={tmp_path / 'file'}", "train.steps=2"])
    assert train(config, tmp_path / "run").finished
    assert "NOT COPIED" in capsys.readouterr().err
    assert cli.main(["checkpoints", str(tmp_path / "run"), "--pull", "nosuch://place"]) == 1
    assert "no such file system" in capsys.readouterr().err
