"""Real ranks over gloo: every layout gives the losses of one process, and goes on where another layout stopped."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from xgenvideo import recipes
from xgenvideo.checkpoint import load, read_account
from xgenvideo.config import RunConfig, override
from xgenvideo.train.log import read_metrics
from xgenvideo.train.loop import train
from xgenvideo.train.resume import differences

ROOT = Path(__file__).parents[2]


def xgv(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", "xgenvideo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


def overrides(config: RunConfig) -> list[str]:
    """What the command line has to say to turn the recipe into this config."""
    changed = differences(recipes.find("tiny"), config)
    return [
        f"{name}={str(value).lower() if isinstance(value, bool) else value}" for name, (_, value) in changed.items()
    ]


@pytest.mark.parametrize("layouts", [["TP2xPP2", "PP2xDP2", "PP2 ZBV"]])
def test_layouts_have_the_losses_and_weights_of_one_process(layouts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "parity.json"
    command = [sys.executable, str(ROOT / "bench" / "parity.py"), "--precisions", "fp64", "--steps", "3"]
    command += ["--out", str(out), "--layouts", *layouts]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["layout"] for row in rows] == layouts
    assert all(row["max_loss_difference"] <= 1e-12 and row["max_weight_difference"] <= 1e-11 for row in rows)


def test_a_run_goes_on_in_another_layout_with_the_losses_of_one_process(run_config: RunConfig, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    train(run_config, alone, quiet=True)
    moved = tmp_path / "moved"
    parts = override(run_config, ["layout.microbatch_pairs=2", "train.stop_after_steps=4"])
    two = override(parts, ["layout.pipeline=2"])
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    first = xgv("train", "tiny", *overrides(two), "--out", str(moved), "--processes", "2", TMPDIR=str(temporary))
    assert first.returncode == 0, first.stderr
    assert not list(temporary.iterdir())
    assert "2 ranks: tensor 1 x pipeline 2 x data 1" in first.stderr
    # Half the way on two pipeline ranks, then two data ranks, then alone.
    data = override(parts, ["layout.data=2", "train.stop_after_steps=6"])
    second = xgv("train", "tiny", *overrides(data), "--out", str(moved), "--processes", "2")
    assert second.returncode == 0, second.stderr
    assert "layout.data 1 -> 2" in second.stderr
    train(override(parts, ["train.stop_after_steps=0"]), moved, quiet=True)
    expected, found = read_metrics(alone), read_metrics(moved)
    losses = {row["step"]: row["loss"] for row in found}
    assert {row["step"] for row in expected} <= set(losses)
    assert all(losses[row["step"]] == pytest.approx(row["loss"], rel=1e-5) for row in expected)


def keys_by_position(out: Path) -> dict[int, str]:
    """Which sample was learnt at each global position, from the ledger's last attempts."""
    found: dict[int, str] = {}
    for path in sorted((out / "ledger").glob("*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()[1:]):
            found.update(enumerate(line["keys"], line["position"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "layouts",
    [
        [("layout.tensor=2", "layout.pipeline=2"), ("layout.data=4",), ("layout.data=2",)],
        [("layout.pipeline=4",), ("layout.pipeline=2",)],
    ],
    ids=["TP2xPP2 DP4 DP2", "PP4 PP2"],
)
def test_a_run_moves_between_layouts_with_the_same_samples_and_losses(
    run_config: RunConfig, tmp_path: Path, layouts: list[tuple[str, ...]]
) -> None:
    deep = override(run_config, ["model.decoder.depth=8", "train.log_every_steps=1", "layout.microbatch_pairs=1"])
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    train(deep, alone, quiet=True)
    steps = deep.train.steps
    for turn, layout in enumerate(layouts, 1):
        stop = "0" if turn == len(layouts) else str(steps * turn // len(layouts))
        part = override(deep, [*layout, f"train.stop_after_steps={stop}"])
        done = xgv("train", "tiny", *overrides(part), "--out", str(moved), "--processes", str(part.layout.world))
        assert done.returncode == 0, done.stderr
    assert keys_by_position(moved) == keys_by_position(alone)
    account = read_account(moved)
    assert (account.lost, account.replayed, account.problems, account.steps_redone) == (0, 0, [], 0)
    losses = {row["step"]: row["loss"] for row in read_metrics(moved)}
    assert all(losses[row["step"]] == pytest.approx(row["loss"], rel=1e-5) for row in read_metrics(alone))


def ranks_of(job: int) -> list[int]:
    """The processes that torchrun started below the process `job`."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            found.append((int(status.parent.name), int(fields[1])))
    children = {child for child, parent in found if parent == job}
    below = {child for child, parent in found if parent in children}
    return sorted(children | below)


def is_rank(process: int) -> bool:
    """Whether a process is a rank of the run, and not its launcher."""
    with contextlib.suppress(OSError):
        return b"\0RANK=" in b"\0" + Path(f"/proc/{process}/environ").read_bytes()
    return False


def two_ranks(config: RunConfig, restarts: int) -> list[str]:
    """A command line of 40 steps on two data ranks, without its run folder."""
    config = override(config, ["layout.data=2", "layout.microbatch_pairs=2", "train.steps=40"])
    config = override(config, ["train.save_every_steps=5", "train.log_every_steps=1", "train.step_timeout_seconds=8"])
    return ["train", "tiny", *overrides(config), "--processes", "2", "--restarts", str(restarts), "--out"]


@pytest.fixture(scope="module")
def undisturbed(run_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `two_ranks` writes when nothing happens to it."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    done = xgv(*two_ranks(run_config, 0), str(out))
    assert done.returncode == 0, done.stderr
    return out


def started(command: list[str], out: Path) -> subprocess.Popen[str]:
    """The command line, once it has saved its first checkpoint."""
    job = subprocess.Popen(
        [sys.executable, "-m", "xgenvideo", *command, str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline, "no checkpoint came"
        assert job.poll() is None, "the job ended"
        time.sleep(0.02)
    return job


def assert_same_end(one: Path, two: Path) -> None:
    """Same weights, optimizer and random state, bitwise, and the same last loss."""
    expected, found = (load(folder / "checkpoints" / "step-00000040") for folder in (one, two))
    for part, tensors in expected.tensors.items():
        assert all(torch.equal(found.tensors[part][name], tensor) for name, tensor in tensors.items()), part
    assert read_metrics(one)[-1]["loss"] == read_metrics(two)[-1]["loss"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_rank_comes_back_and_a_signal_saves(
    run_config: RunConfig, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command, out = two_ranks(run_config, 2), tmp_path / "hit"
    job = started(command, out)
    if number == signal.SIGKILL:
        ranks = [process for process in ranks_of(job.pid) if is_rank(process)]
        assert len(ranks) == 2
        os.kill(ranks[1], number)
    else:
        job.send_signal(number)
    told = job.communicate(timeout=200)[1]
    if number == signal.SIGTERM:
        assert job.returncode != 0
        assert f"SIGTERM: the same command goes on from {out}" in told
        assert xgv(*command, str(out)).returncode == 0
    else:
        assert job.returncode == 0, told
        assert "resume:" in told
    assert_same_end(undisturbed, out)


def test_a_rank_that_hangs_is_named_killed_and_comes_back(
    run_config: RunConfig, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "hung"
    job = started(two_ranks(run_config, 1), out)
    os.kill([process for process in ranks_of(job.pid) if is_rank(process)][1], signal.SIGSTOP)
    began = time.monotonic()
    told = job.communicate(timeout=200)[1]
    assert job.returncode == 0, told
    assert time.monotonic() - began < 90
    assert "hung: rank 1 in phase" in told
    assert "gives no sign of life" in told
    assert_same_end(undisturbed, out)


def test_ranks_that_do_not_fit_the_layout_are_one_sentence(run_config: RunConfig, tmp_path: Path) -> None:
    three = overrides(override(run_config, ["layout.data=2", "layout.microbatch_pairs=2"]))
    done = xgv("train", "tiny", *three, "--out", str(tmp_path / "run"), "--processes", "3")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "layout.data = 2: layout.tensor x layout.pipeline x layout.data" in line
    assert "3 are there" in line
