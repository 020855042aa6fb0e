"""The held-out loss while training: it is the evaluation's, it changes nothing, and it wants a whole batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_loop import final_tensors
from xgenvideo.checkpoint import load_run
from xgenvideo.config import RunConfig, override
from xgenvideo.data.dataset import open_dataset
from xgenvideo.errors import ConfigError
from xgenvideo.evaluate.run import evaluate
from xgenvideo.train.log import read_metrics
from xgenvideo.train.loop import train


@pytest.mark.parametrize("microbatch", [4, 2])
def test_it_is_the_loss_of_the_evaluation_and_changes_nothing(
    run_config: RunConfig, tmp_path: Path, microbatch: int
) -> None:
    config = override(run_config, [f"layout.microbatch_pairs={microbatch}", "train.log_every_steps=5"])
    watched = override(config, ["train.eval_every_steps=3"])
    train(config, tmp_path / "plain", quiet=True)
    train(watched, tmp_path / "watched", quiet=True)
    plain, seen = final_tensors(tmp_path / "plain"), final_tensors(tmp_path / "watched")
    assert all(plain[name].equal(tensor) for name, tensor in seen.items())

    rows = {row["step"]: row for row in read_metrics(tmp_path / "watched")}
    assert [step for step, row in rows.items() if "heldout_loss" in row] == [3, 6, 8]
    assert rows[5].keys() < rows[8].keys()
    run = load_run(tmp_path / "watched")
    figures = evaluate(run.model, run.tokenizer, open_dataset(Path(config.data.shards)), config)
    assert rows[8]["heldout_next_token"] == pytest.approx(figures["heldout_next_token"], rel=1e-5)
    assert rows[3]["heldout_next_token"] != rows[8]["heldout_next_token"]
    summed = rows[8]["heldout_next_token"] + rows[8]["heldout_contrastive"]
    assert rows[8]["heldout_loss"] == pytest.approx(summed)


def test_one_batch_of_all_held_out_pairs_has_the_contrastive_loss_of_the_pool(
    run_config: RunConfig, tmp_path: Path
) -> None:
    changes = ["train.global_batch_pairs=24", "layout.microbatch_pairs=24", "train.steps=1", "train.eval_every_steps=1"]
    config = override(run_config, changes)
    train(config, tmp_path / "run", quiet=True)
    (row,) = read_metrics(tmp_path / "run")
    run = load_run(tmp_path / "run")
    figures = evaluate(run.model, run.tokenizer, open_dataset(Path(config.data.shards)), config)
    assert row["heldout_contrastive"] == pytest.approx(figures["heldout_contrastive"], rel=1e-5)


def test_no_gradient_is_worked_out(run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, grad = [], torch.autograd.grad

    def counting(*arguments: Any, **keywords: Any) -> Any:
        asked.append(arguments)
        return grad(*arguments, **keywords)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    config = override(run_config, ["train.steps=2", "train.eval_every_steps=1"])
    train(config, tmp_path, quiet=True)
    assert all("heldout_contrastive" in row for row in read_metrics(tmp_path))
    assert len(asked) == config.train.steps


def test_fewer_batches_are_the_first_ones(run_config: RunConfig, tmp_path: Path) -> None:
    few = override(run_config, ["train.steps=2", "train.eval_every_steps=2", "train.eval_batches=2"])
    more = override(few, ["train.eval_batches=100"])
    train(few, tmp_path / "few", quiet=True)
    train(more, tmp_path / "more", quiet=True)
    first, second = (read_metrics(tmp_path / name)[-1]["heldout_loss"] for name in ("few", "more"))
    assert first != second


def test_too_few_held_out_pairs_are_told(run_config: RunConfig, tmp_path: Path) -> None:
    changes = ["train.global_batch_pairs=32", "layout.microbatch_pairs=32", "train.eval_every_steps=1"]
    with pytest.raises(ConfigError, match=r"train\.eval_every_steps = 1: .* holds out 24 pairs; set 0"):
        train(override(run_config, changes), tmp_path, quiet=True)
