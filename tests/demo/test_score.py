"""Scores of filters against planted defects, and the targets: a figure on the wrong side is never called reached."""

import math
from typing import Any

import pytest

from xgenvideo.demo.score import REASONS, FilterScore, confusion, judge, score_filters


def test_precision_and_recall_by_hand() -> None:
    reason = {defect: sorted(reasons)[0] for defect, reasons in REASONS.items()}
    planted = {"a": {"watermark"}, "b": {"watermark"}, "c": {"broken"}, "d": set()}
    dropped = {"a": reason["watermark"], "c": reason["broken"], "d": reason["watermark"]}
    scores = score_filters(planted, dropped)
    assert scores["watermark"] == FilterScore(planted=2, dropped=2, right=1)
    assert (scores["watermark"].precision, scores["watermark"].recall) == (0.5, 0.5)
    assert (scores["broken"].precision, scores["broken"].recall) == (1.0, 1.0)
    assert "still" not in scores


def test_a_pair_dropped_for_its_other_defect_is_not_held_against_a_filter() -> None:
    planted = {"a": {"watermark", "broken"}}
    scores = score_filters(planted, {"a": sorted(REASONS["broken"])[0]})
    assert scores["watermark"] == FilterScore(0, 0, 0)
    assert scores["broken"].recall == 1.0


def test_a_pair_dropped_for_a_wrong_reason_is_missed() -> None:
    scores = score_filters({"a": {"watermark"}}, {"a": "still"})
    assert scores["watermark"].recall == 0.0
    assert scores["still"].precision == 0.0


def test_confusion_counts_every_pair_once_for_each_of_its_defects() -> None:
    table = confusion({"a": {"watermark"}, "b": {"watermark"}}, {"a": "watermark", "b": None, "c": None, "d": "still"})
    assert table == {"none": {"kept": 1, "still": 1}, "watermark": {"watermark": 1, "kept": 1}}


def summary(**changes: Any) -> dict[str, Any]:
    good = dict.fromkeys(REASONS, 1.0)
    values: dict[str, Any] = {
        "twin_choice": 0.9,
        "temporal_qa": 0.9,
        "temporal_qa_no_video": 0.5,
        "temporal_qa_one_frame": 0.45,
        "temporal_qa_shuffled": 0.55,
        "temporal_qa_reversed": 0.3,
        "temporal_qa_reversed_direction_order": 0.1,
        "steps": 600,
        "chance": 0.48,
        "retrieval_chance_r1": 0.01,
        "retrieval_t2v_r1": 0.2,
        "retrieval_v2t_r1": 0.2,
        "filter_precision": good,
        "filter_recall": good,
        "filter_counts": {defect: {"planted": 3, "dropped": 3, "right": 3} for defect in REASONS},
        "seconds_by_stage": {"train": 300.0},
        "peak_rss_mb": 1500.0,
        "loss_first": 7.0,
        "loss_last": 1.0,
        "heldout_loss": 1.2,
        "pairs_kept": 500,
    }
    return values | changes


def test_all_targets_can_be_reached() -> None:
    assert [target.name for target in judge(summary(), quick=False) if not target.reached] == []


def test_every_target_can_be_missed_and_says_why() -> None:
    bad = dict.fromkeys(REASONS, 0.5)
    missed = summary(
        twin_choice=0.5,
        temporal_qa=0.5,
        temporal_qa_no_video=0.7,
        temporal_qa_one_frame=0.7,
        temporal_qa_shuffled=0.3,
        temporal_qa_reversed_direction_order=0.5,
        retrieval_t2v_r1=0.01,
        retrieval_v2t_r1=0.01,
        filter_precision=bad,
        filter_recall=bad,
        seconds_by_stage={"train": 601.0},
        peak_rss_mb=6001.0,
    )
    targets = judge(missed, quick=False)
    assert not any(target.reached for target in targets)
    assert all(target.why for target in targets)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_what_was_not_measured_is_not_reached(nothing: float | None) -> None:
    targets = judge(summary(twin_choice=nothing, temporal_qa_shuffled=nothing, filter_recall={}), quick=True)
    missed = {target.name for target in targets if not target.reached}
    assert {"twin choice", "control shuffled", "watermark: recall"} <= missed


def test_clips_learnt_by_heart_are_named_as_the_reason() -> None:
    targets = judge(summary(twin_choice=0.5, loss_last=0.2, heldout_loss=2.6), quick=False)
    assert "learnt by heart" in next(target.why for target in targets if target.name == "twin choice")
    targets = judge(summary(twin_choice=0.5), quick=False)
    assert "learnt by heart" not in next(target.why for target in targets if target.name == "twin choice")
