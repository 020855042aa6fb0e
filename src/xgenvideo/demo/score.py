"""Scores of the demonstration: curation's filters against the planted defects, and the targets of the whole journey."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The reason codes with which curation may rightly drop a pair of each planted defect.
REASONS: dict[str, frozenset[str]] = {
    "watermark": frozenset({"watermark"}),
    "subtitle": frozenset({"subtitle"}),
    "swapped_caption": frozenset({"misaligned"}),
    "foreign_caption": frozenset({"caption_language"}),
    "still": frozenset({"still"}),
    "joined": frozenset({"joined"}),
    "near_duplicate": frozenset({"near_duplicate"}),
    "broken": frozenset(
        {
            "decode_failed",
            "decode_timeout",
            "decoder_crashed",
            "empty_file",
            "missing_file",
            "no_timestamps",
            "no_video_stream",
            "not_a_video",
            "too_large",
            "too_short",
            "truncated",
            "unknown_container",
        }
    ),
}
MUST_FILTER = ("watermark", "near_duplicate", "broken", "swapped_caption", "foreign_caption")


@dataclass(frozen=True)
class FilterScore:
    """One filter: `planted` pairs have the defect, `dropped` were dropped for it, `right` are both."""

    planted: int
    dropped: int
    right: int

    @property
    def precision(self) -> float | None:
        """Share of the dropped that have the defect; None where nothing was dropped."""
        return self.right / self.dropped if self.dropped else None

    @property
    def recall(self) -> float | None:
        """Share of the planted that were dropped; None where nothing was planted."""
        return self.right / self.planted if self.planted else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def score_filters(planted: dict[str, set[str]], dropped: dict[str, str]) -> dict[str, FilterScore]:
    """Score each filter that had something to do. `planted`: key to its defects; `dropped`: key to its reason code.

    A pair that was dropped for one of its other defects counts neither for nor against a filter that it never reached.
    """
    scores = {}
    for defect, reasons in REASONS.items():
        has = {key for key, defects in planted.items() if defect in defects}
        hit = {key for key, reason in dropped.items() if reason in reasons}
        for_another = {
            key
            for key in has - hit
            if key in dropped and any(dropped[key] in REASONS[other] for other in planted[key] if other in REASONS)
        }
        if has or hit:
            scores[defect] = FilterScore(len(has - for_another), len(hit), len(has & hit))
    return scores


def confusion(planted: dict[str, set[str]], outcome: dict[str, str | None]) -> dict[str, dict[str, int]]:
    """How often each planted defect (or "none") met each outcome: a reason code, or "kept"."""
    table: dict[str, dict[str, int]] = {name: {} for name in ("none", *REASONS)}
    for key, reason in outcome.items():
        for defect in planted.get(key) or {"none"}:
            row = table.setdefault(defect, {})
            row[reason or "kept"] = row.get(reason or "kept", 0) + 1
    return {defect: row for defect, row in table.items() if row}


@dataclass(frozen=True)
class Target:
    """One target: what was asked, what was measured (None: nothing could be), whether it is reached; if not, why."""

    name: str
    rule: str
    value: float | None
    reached: bool
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def judge(summary: dict[str, Any], quick: bool) -> list[Target]:
    """All targets of the demonstration against its summary."""
    small = "a quick run is too short to learn this; run `xgv demo` without --quick" if quick else ""
    return [*_learnt(summary, small), *_filtered(summary, quick), *_budget(summary)]


def _learnt(summary: dict[str, Any], small: str) -> Iterable[Target]:
    """What the model learnt, and that it learnt it from the order of frames."""
    why = small or _learning(summary)
    yield _at_least("twin choice", summary["twin_choice"], 0.85, why)
    yield _at_least("temporal questions", summary["temporal_qa"], 0.85, why)
    chance = summary["chance"]
    for control in ("no_video", "one_frame", "shuffled"):
        value = summary[f"temporal_qa_{control}"]
        reached = value is not None and abs(value - chance) <= 0.08
        rule = f"within 0.08 of chance ({_shown(chance)})"
        yield _target(
            f"control {control}", rule, value, reached, "part of the answers does not need the order of frames"
        )
    value = summary["temporal_qa_reversed_direction_order"]
    reached = value is not None and value <= chance - 0.08
    why_not = small or "the model follows the direction of time less than it should"
    rule = f"at least 0.08 below chance ({_shown(chance)})"
    yield _target("control reversed, direction and order", rule, value, reached, why_not)
    for direction in ("t2v", "v2t"):
        why_not = small or "captions that differ only in time lie close to each other"
        value, wanted = summary[f"retrieval_{direction}_r1"], 10 * summary["retrieval_chance_r1"]
        if wanted > 1:
            why_not = "there are fewer than ten held-out clips, so nothing can be ten times chance"
        yield _at_least(f"retrieval {direction} R@1", value, wanted, why_not)


def _learning(summary: dict[str, Any]) -> str:
    """What training came to, and whether it is the clips or the steps that are too few."""
    first, last, held_out = summary["loss_first"], summary["loss_last"], summary["heldout_loss"]
    told = (
        f"{summary['steps']} steps on {summary['pairs_kept']} kept pairs: the training loss went from {first:.2f} to "
        f"{last:.2f}, held-out it is {held_out:.2f}"
    )
    return f"{told}; the clips are learnt by heart, so more clips are needed" if held_out > 2 * last else told


def _filtered(summary: dict[str, Any], quick: bool) -> Iterable[Target]:
    for measure in ("precision", "recall"):
        for defect in MUST_FILTER:
            value = summary[f"filter_{measure}"].get(defect)
            counts = summary["filter_counts"].get(defect)
            if counts is None:
                why = "none was planted" + (" in so few clips" if quick else "")
            else:
                why = (
                    f"{counts['planted']} planted, {counts['dropped']} dropped for it, {counts['right']} of these right"
                )
            yield _at_least(f"{defect}: {measure}", value, 0.9, why)


def _budget(summary: dict[str, Any]) -> Iterable[Target]:
    seconds, memory = sum(summary["seconds_by_stage"].values()), summary["peak_rss_mb"]
    why = "this machine is slower than two free cores, or other work ran beside it"
    yield _target("time", "at most 600 s", seconds, seconds <= 600, why)
    why = "peak_rss_mb_by_stage in summary.json names the stage"
    yield _target("memory", "at most 6000 MB", memory, memory <= 6000, why)


def _at_least(name: str, value: float | None, wanted: float, why: str) -> Target:
    return _target(name, f"at least {wanted:.3g}", value, value is not None and value >= wanted, why)


def _target(name: str, rule: str, value: float | None, reached: bool, why: str) -> Target:
    return Target(name, rule, value, reached, "" if reached else why)


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def print_targets(targets: list[dict[str, Any]]) -> None:
    """The targets as a table on stdout, and below it why some are not reached."""
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "asked", "measured", "")
    missed: dict[str, list[str]] = {}
    for target in targets:
        said = "[green]reached" if target["reached"] else "[red]not reached"
        table.add_row(target["name"].replace("_", " "), target["rule"], _shown(target["value"]), said)
        if not target["reached"]:
            missed.setdefault(target["why"], []).append(target["name"].replace("_", " "))
    console = Console()
    console.print(table)
    for why, names in missed.items():
        console.print(f"not reached: {', '.join(names)}: {why}", highlight=False)
