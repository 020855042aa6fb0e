"""The promises of a checkpoint, each broken on purpose: death at every instant, every kind of damage, a full disk."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from xgenvideo.checkpoint import Snapshot, load, newest_verified, save, search, sweep, verify
from xgenvideo.checkpoint.snapshot import Listed, read_commit
from xgenvideo.config import RunConfig
from xgenvideo.errors import CheckpointError


class Died(BaseException):
    """The process died here: not an Exception, so no handler of the code under test runs."""


@pytest.fixture
def config(small_config: RunConfig) -> RunConfig:
    return small_config


def snapshot(config: RunConfig, step: int) -> Snapshot:
    """Tensors of several dtypes that depend on the step."""
    generator = torch.Generator().manual_seed(step)
    model = {
        "a.weight": torch.randn(40, 30, generator=generator),
        "b.weight": torch.randn(7, generator=generator, dtype=torch.float64),
        "scalar": torch.tensor(float(step)),
    }
    random = {"cpu": torch.randint(0, 256, (64,), dtype=torch.uint8, generator=generator)}
    return Snapshot(step, config, {"model": model, "random": random}, {"loader": {"samples_consumed": step * 8}})


def assert_same(found: Snapshot, expected: Snapshot) -> None:
    assert (found.step, found.config) == (expected.step, expected.config)
    assert found.state == expected.state | {"step": expected.step}
    assert found.tensors.keys() == expected.tensors.keys()
    for part, tensors in expected.tensors.items():
        assert found.tensors[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found.tensors[part][name].dtype == tensor.dtype
            assert torch.equal(found.tensors[part][name], tensor)


def test_what_was_saved_is_loaded(config: RunConfig, tmp_path: Path) -> None:
    path = save(tmp_path, snapshot(config, 200), keep=2)
    assert path == tmp_path / "step-00000200"
    names = {"COMMIT.json", "config.json", "index.json", "state.json", "model.safetensors", "random.safetensors"}
    assert {file.name for file in path.iterdir()} == names
    assert_same(load(path), snapshot(config, 200))
    assert load(path, parts=("random",)).tensors.keys() == {"random"}
    with pytest.raises(CheckpointError, match="has no optimizer, only model, random"):
        load(path, parts=("optimizer",))


def test_every_file_names_the_save_that_it_belongs_to(config: RunConfig, tmp_path: Path) -> None:
    one, two = (save(tmp_path / name, snapshot(config, 3), keep=2) for name in "ab")
    ids = [read_commit(path).save_id for path in (one, two)]
    assert ids[0] != ids[1]
    for path, save_id in zip((one, two), ids, strict=True):
        with safe_open(path / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", "save_id": save_id, "step": "3", "rank": "0", "ranks": "1"}
            assert torch.equal(file.get_tensor("a.weight"), snapshot(config, 3).tensors["model"]["a.weight"])


def test_a_tensor_that_is_not_contiguous_keeps_its_values(config: RunConfig, tmp_path: Path) -> None:
    turned = torch.arange(6.0).reshape(2, 3).T
    path = save(tmp_path, Snapshot(1, config, {"model": {"turned": turned}}, {}), keep=2)
    assert torch.equal(load(path).tensors["model"]["turned"], turned)


def dying_at(monkeypatch: pytest.MonkeyPatch, instant: int) -> Callable[[], bool]:
    """Die at the given call of the file system, counted over all that a save does; tells whether it happened."""
    calls, remove = 0, shutil.rmtree

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == instant:
                if function is remove:
                    next(Path(arguments[0]).glob("*.safetensors")).unlink()  # died half-way
                raise Died
            return function(*arguments, **named)

        return call

    for owner, name in ((os, "fsync"), (os, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    opened = open

    def half_written(file: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        if mode != "xb":
            return opened(file, mode, *arguments, **named)
        calls += 1
        if calls == instant:
            with opened(file, mode) as started:
                started.write(b"half a file")
            raise Died
        return opened(file, mode, *arguments, **named)

    monkeypatch.setattr("builtins.open", half_written)
    return lambda: calls >= instant


def test_a_save_that_dies_at_any_instant_leaves_a_checkpoint_that_verifies(config: RunConfig, tmp_path: Path) -> None:
    instant, seen = 0, set()
    while True:
        instant += 1
        folder = tmp_path / str(instant)
        for step in (1, 2):
            save(folder, snapshot(config, step), keep=2)
        with pytest.MonkeyPatch.context() as patch:
            died = dying_at(patch, instant)
            with contextlib.suppress(Died):
                save(folder, snapshot(config, 3), keep=2)
            if not died():
                break
        found = load(newest_verified(folder))
        assert_same(found, snapshot(config, found.step))
        assert not search(folder).refused, "no reader is ever shown a half-written one"
        named = list(folder.glob("step-*"))
        assert len(named) >= 2
        for path in named:
            verify(path)
        seen.add(found.step)
        # Life after death: the leftovers go, the next save works.
        sweep(folder)
        assert not list(folder.glob(".*"))
        assert newest_verified(save(folder, snapshot(config, 4), keep=2).parent).name == "step-00000004"
    assert seen == {2, 3}, "the instants cover death before and after the rename"
    assert instant > 14


@pytest.mark.parametrize(
    "file", ["COMMIT.json", "config.json", "state.json", "model.safetensors", "random.safetensors"]
)
def test_a_flipped_bit_anywhere_is_found(config: RunConfig, tmp_path: Path, file: str) -> None:
    save(tmp_path, snapshot(config, 1), keep=2)
    path = save(tmp_path, snapshot(config, 2), keep=2)
    whole = (path / file).read_bytes()
    for place in {0, len(whole) // 3, len(whole) // 2, len(whole) - 2}:
        flipped = bytearray(whole)
        flipped[place] ^= 0b100
        (path / file).write_bytes(flipped)
        assert newest_verified(tmp_path).name == "step-00000001"
        assert list(search(tmp_path).refused) == [path]
        with pytest.raises(CheckpointError, match="step-00000002"):
            load(path)
    (path / file).write_bytes(whole)
    assert newest_verified(tmp_path) == path


@pytest.mark.parametrize("damage", ["truncated", "missing", "longer", "empty folder", "no commit"])
def test_other_damage_is_found_and_named(config: RunConfig, tmp_path: Path, damage: str) -> None:
    save(tmp_path, snapshot(config, 1), keep=2)
    path = save(tmp_path, snapshot(config, 2), keep=2)
    model = path / "model.safetensors"
    content = model.read_bytes()
    if damage == "truncated":
        model.write_bytes(content[:-1])
    elif damage == "longer":
        model.write_bytes(content + b"\0")
    elif damage == "missing":
        model.unlink()
    elif damage == "no commit":
        (path / "COMMIT.json").unlink()
    else:
        for file in path.iterdir():
            file.unlink()
    found = search(tmp_path)
    assert found.newest == tmp_path / "step-00000001"
    [reason] = found.refused.values()
    assert "step-00000002" in reason
    assert any(word in reason for word in ("bytes", "No such file", "did not finish"))


def test_a_checkpoint_under_another_steps_name_is_refused(config: RunConfig, tmp_path: Path) -> None:
    path = save(tmp_path, snapshot(config, 1), keep=2)
    path.rename(tmp_path / "step-00000009")
    assert search(tmp_path).newest is None
    with pytest.raises(CheckpointError, match="is of step 1"):
        newest_verified(tmp_path)


def test_a_commit_record_cannot_point_outside(config: RunConfig, tmp_path: Path) -> None:
    path = save(tmp_path, snapshot(config, 1), keep=2)
    (tmp_path / "outside.json").write_text("{}")
    commit = dataclasses.replace(read_commit(path), files={"../outside.json": Listed.of(b"{}")})
    (path / "COMMIT.json").write_text(commit.text())
    with pytest.raises(CheckpointError, match="outside"):
        verify(path)


def test_a_newer_format_is_refused_by_its_number(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("xgenvideo.checkpoint.snapshot.VERSION", 99)
        path = save(tmp_path, snapshot(config, 1), keep=2)
    with pytest.raises(CheckpointError, match="format version is 99, this program reads version 2"):
        load(path)


def test_nothing_is_overwritten(config: RunConfig, tmp_path: Path) -> None:
    path = save(tmp_path, snapshot(config, 1), keep=2)
    with pytest.raises(CheckpointError, match="never overwritten"):
        save(tmp_path, snapshot(config, 1), keep=2)
    (path / "state.json").write_text("damaged")
    again = save(tmp_path, snapshot(config, 1), keep=2)
    assert_same(load(again), snapshot(config, 1))
    [aside] = tmp_path.glob("corrupt-*")
    assert (aside / "state.json").read_text() == "damaged"


def test_retention_counts_verified_ones_only(config: RunConfig, tmp_path: Path) -> None:
    for step in range(1, 5):
        save(tmp_path, snapshot(config, step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    (tmp_path / "step-00000004" / "state.json").write_text("damaged")
    save(tmp_path, snapshot(config, 5), keep=2)
    names = ["step-00000003", "step-00000004", "step-00000005"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names, "3 is still the second that verifies"
    save(tmp_path, snapshot(config, 6), keep=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000006"], "never fewer than 2"


def test_a_full_disk_is_told_and_leaves_nothing(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, snapshot(config, 1), keep=2)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"No space left.*earlier checkpoints"):
        save(tmp_path, snapshot(config, 2), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert search(tmp_path / "none").newest is None
    with pytest.raises(CheckpointError, match="nothing was saved there"):
        newest_verified(tmp_path / "none")


def test_the_commit_record_lists_sizes_and_hashes(config: RunConfig, tmp_path: Path) -> None:
    path = save(tmp_path, snapshot(config, 1), keep=2)
    record = json.loads((path / "COMMIT.json").read_text())
    assert {name: entry["bytes"] for name, entry in record["files"].items()} == {
        file.name: file.stat().st_size for file in path.iterdir() if file.name != "COMMIT.json"
    }
    assert all(len(entry["sha256"]) == 64 for entry in record["files"].values())
