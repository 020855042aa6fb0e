"""Curation on paper: a curation's own record scaled to another number of pairs."""

import json
from pathlib import Path

import pytest

from xgenvideo.config import override
from xgenvideo.errors import ConfigError
from xgenvideo.plan import plan, render, to_json
from xgenvideo.plan.curation import plan_curation
from xgenvideo.recipes import find


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """100 inputs, of which a step left 80, another 40."""
    record = {
        "pairs_in": 100,
        "pairs_kept": 40,
        "funnel": {"inputs": 100, "decode": 80, "text_overlay": 40, "alignment": 40},
        "timings": {"decode": 20.0, "text_overlay": 36.0, "write": 2.0},
        "bytes": {"videos": 1000, "clips": 800, "shards": 400},
    }
    (tmp_path / "curation.json").write_text(json.dumps(record), encoding="utf-8")
    return tmp_path


def test_costs_grow_with_what_comes_to_each_step(dataset: Path) -> None:
    found = plan_curation(4_000_000, dataset)
    assert found.inputs == 10_000_000
    hours = {step.name: step.core_hours * 3600 for step in found.steps}
    assert hours == pytest.approx({"decode": 2e6, "text_overlay": 3.6e6, "write": 2e5})
    assert [(step.came, step.left) for step in found.steps] == [(1e7, 8e6), (8e6, 4e6), (4e6, 4e6)]
    assert (found.video_bytes, found.clip_bytes, found.shard_bytes) == (1e8, 8e7, 4e7)
    assert found.alone_hours == found.bookkeeping_hours > 0
    assert found.days(1) == pytest.approx((found.core_hours + found.alone_hours) / 24)
    assert found.days(1000) == pytest.approx((found.core_hours / 1000 + found.alone_hours) / 24)


def test_what_one_process_does_is_not_shared(dataset: Path) -> None:
    record = json.loads((dataset / "curation.json").read_text())
    record["funnel"]["duplicates"], record["timings"]["duplicates"] = 40, 4.0
    (dataset / "curation.json").write_text(json.dumps(record))
    found = plan_curation(4_000_000, dataset)
    assert found.alone_hours - found.bookkeeping_hours == pytest.approx(4e5 / 3600)
    assert found.days(10**9) == pytest.approx(found.alone_hours / 24, rel=1e-6)


def test_the_page_names_what_was_measured(dataset: Path) -> None:
    config = find("video_30b")
    shipped, own = plan(config, 512, "h100"), plan(config, 512, "h100", curated=dataset)
    assert "88 published clips of Panda-70M" in render(shipped)
    assert str(dataset) in render(own)
    values = to_json(own)["curation"]
    assert values["inputs"] == 375_000_000
    assert values["core_hours"] == pytest.approx(58 / 40 * 150e6 / 3600)


def test_a_recipe_without_a_number_of_pairs_has_no_such_section() -> None:
    assert "Curation of" not in render(plan(find("tiny"), 1, "h100"))
    assert "Curation of 7," in render(plan(override(find("tiny"), ["data.pairs_expected=7000"]), 1, "h100"))


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"pairs_in": 3, "pairs_kept": 0, "funnel": {}, "timings": {}}', "{}"]
)
def test_what_is_no_record_of_a_curation_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "curation.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="give a folder that `xgv curate` wrote"):
        plan_curation(10, tmp_path)
