"""A machine measured in a moment, and a plan on it; the tiny recipe's own step against that plan (slow)."""

import dataclasses
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from xgenvideo import cli
from xgenvideo.config import RunConfig, override
from xgenvideo.data.batch import Batch
from xgenvideo.data.loader import Loader
from xgenvideo.errors import ConfigError
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.world import World
from xgenvideo.plan.calibration import Calibration, Link, local_step, product_seconds, read_calibration
from xgenvideo.recipes import find
from xgenvideo.train.calibrate import calibrate
from xgenvideo.train.optimizer import build_optimizer
from xgenvideo.train.step import training_step


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Calibration]:
    path = tmp_path_factory.mktemp("calibration") / "machine.json"
    return path, calibrate(path, 5.0, lambda text: None)


def test_what_was_measured_is_read_back(measured: tuple[Path, Calibration]) -> None:
    path, found = measured
    assert read_calibration(path) == found
    assert found.peak_flops_per_second > 1e9
    numbers = [value for value in dataclasses.asdict(found).values() if isinstance(value, float)]
    assert all(number > 0 for number in numbers)
    assert found.links == ()


def test_products_between_measured_shapes_cost_between(measured: tuple[Path, Calibration]) -> None:
    _, found = measured
    speeds = [product.flops_per_second for product in found.products]
    speed = 2 * 4096 * 256 * 256 / product_seconds(found, 4096, 256, 256)
    assert min(speeds) <= speed <= max(speeds)


def test_plan_of_a_measured_machine(measured: tuple[Path, Calibration], capsys: pytest.CaptureFixture[str]) -> None:
    path, found = measured
    config = find("tiny")
    step = local_step(config, found)
    assert step.total == pytest.approx(sum(dataclasses.astuple(step)))
    longer = local_step(override(config, ["data.text_tokens=128"]), found)
    assert step.total < longer.total
    assert cli.main(["plan", "tiny", "--gpu", str(path)]) == 0
    assert f"{step.total:.4g} s a step" in capsys.readouterr().out
    assert cli.main(["plan", "tiny", "--gpu", str(path), "--search"]) == 2


def test_replicas_need_a_measured_all_reduce(measured: tuple[Path, Calibration]) -> None:
    _, found = measured
    config = override(find("tiny"), ["layout.data=2", "layout.microbatch_pairs=16"])
    with pytest.raises(ConfigError, match="under torchrun"):
        local_step(config, found)
    linked = dataclasses.replace(found, links=(Link("all_reduce", "gloo", 2, 1e-3, 1e9),))
    assert local_step(config, linked).gradients == pytest.approx(1e-3 + 4 * 1_876_229 / 1e9)


def test_refusals(measured: tuple[Path, Calibration], tmp_path: Path) -> None:
    _, found = measured
    with pytest.raises(ConfigError, match="at least 5"):
        calibrate(tmp_path / "x.json", 1.0, print)
    with pytest.raises(ConfigError, match="is no calibration"):
        read_calibration(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="cache_features"):
        local_step(override(find("tiny"), ["data.cache_features=false"]), found)


@pytest.mark.slow
def test_two_ranks_measure_their_link(tmp_path: Path) -> None:
    out = tmp_path / "machine.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "run.py"
    script.write_text(
        f"from xgenvideo import cli\nassert cli.main(['calibrate', '--out', {str(out)!r}, '--seconds', '6']) == 0\n"
    )
    subprocess.run([*command, str(script)], check=True, timeout=120)
    assert [(link.kind, link.ranks, link.backend) for link in read_calibration(out).links] == [
        ("all_reduce", 2, "gloo"),
        ("message", 2, "gloo"),
    ]


def full_batch(config: RunConfig) -> Batch:
    """A batch whose pairs all have their full length, features cached."""
    pairs, frames, tokens = config.train.global_batch_pairs, config.data.frames, config.data.text_tokens
    vision = config.model.vision
    text = torch.randint(0, config.model.decoder.vocab, (pairs, tokens))
    return Batch(
        frames=None,
        features=torch.randn(pairs, frames, vision.patches, vision.width),
        pts=torch.arange(frames).float().expand(pairs, frames) / 2,
        frame_mask=torch.ones(pairs, frames, dtype=torch.bool),
        tokens=text,
        targets=text,
        documents=torch.zeros_like(text),
        positions=torch.arange(tokens).expand(pairs, tokens),
        caption_end=torch.full((pairs,), tokens - 1),
        sees_video=torch.ones(pairs, tokens, dtype=torch.bool),
        caption_group=torch.arange(pairs),
        keys=tuple(map(str, range(pairs))),
    )


@pytest.mark.slow
def test_plan_predicts_the_tiny_recipes_step(tmp_path: Path) -> None:
    """Within 15 %. Steps are timed before and after the calibration, as a shared machine changes its speed."""
    config = find("tiny")
    world = World(0, 1, torch.device("cpu"))
    engine = build_engine(config, world)
    optimizer = build_optimizer(engine.pieces, config.optimizer)
    batch = full_batch(config)
    loader = cast(Loader, SimpleNamespace(next_batch=lambda: batch))

    def seconds() -> list[float]:
        found = []
        for step in range(10):
            start = time.perf_counter()
            training_step(config, engine, loader, optimizer, world, step)
            found.append(time.perf_counter() - start)
        return found[2:]

    before = seconds()
    calibration = calibrate(tmp_path / "machine.json", 30.0, lambda text: None)
    taken = statistics.median([*before, *seconds()])
    assert local_step(config, calibration).total == pytest.approx(taken, rel=0.15)
