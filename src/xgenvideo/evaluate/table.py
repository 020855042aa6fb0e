"""The figures of an evaluation as a table for people."""

import io
from collections.abc import Callable, Iterator
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

WIDTH = 100
Format = Callable[[float], str]


def table(results: dict[str, Any]) -> str:
    """The results of `evaluate` as plain text: figure, 95 % interval, chance."""
    questions, pool = results.get("questions"), results.get("clips")
    title = f"{results.get('split', '')}: {pool} clips, {questions} questions, {results.get('twin_clips')} with a twin"
    grid = Table("figure", "value", "95 % interval", "chance", title=title, box=SIMPLE)
    for column in grid.columns[1:]:
        column.justify = "right"
    intervals = results.get("intervals", {})
    for name, value, style, chance in _lines(results):
        interval = intervals.get(name)
        span = f"{style(interval[0])} to {style(interval[1])}" if interval else ""
        shown = "not measured" if value is None else style(value)
        grid.add_row(name.replace("/", " / "), shown, span, "" if chance is None else style(chance))
    text = io.StringIO()
    Console(width=WIDTH, color_system=None, force_terminal=False, file=text).print(grid)
    return text.getvalue()


def benchmark_table(results: dict[str, Any]) -> str:
    """The results of `run_benchmark` as plain text; what was not read comes first, so that nobody misses it."""
    intervals = results["intervals"]
    grid = Table("figure", "value", "95 % interval", "chance", title=results["benchmark"], box=SIMPLE)
    for column in grid.columns[1:]:
        column.justify = "right"
    for name, value in results.items():
        if name not in intervals:
            continue
        low, high = intervals[name]
        chance = results.get(f"{name.removesuffix('_r1')}_chance_r1") if name.endswith("_r1") else results.get("chance")
        grid.add_row(name, _percent(value), f"{_percent(low)} to {_percent(high)}", _percent(chance) if chance else "")
    for name, value in results.items():
        if name.endswith("_median_rank"):
            grid.add_row(name, f"{value:g}", "", "")
    for name, value in (results.get("captions") or {}).items():
        if isinstance(value, float):
            grid.add_row(f"captions / {name}", _number(value), "", "")
    text = io.StringIO()
    Console(width=WIDTH, color_system=None, force_terminal=False, file=text).print(grid)
    asked = results.get("questions")
    questions = (
        f"; {asked['asked']} of {asked['annotated']} questions asked {asked['not_asked'] or ''}" if asked else ""
    )
    return f"{results['videos']['said']}{questions}\n{text.getvalue()}"


def _lines(results: dict[str, Any]) -> Iterator[tuple[str, float | None, Format, float | None]]:
    """Name, value, how to print it, and chance, in the order of the table."""
    for name in ("heldout_next_token", "heldout_contrastive"):
        yield name, results.get(name), _number, None
    chance = results.get("chance")
    yield "temporal_qa", results.get("temporal_qa"), _percent, chance
    for kind, value in (results.get("temporal_qa_by_kind") or {}).items():
        yield f"temporal_qa/{kind}", value, _percent, None
    for control in ("no_video", "one_frame", "shuffled", "reversed", "reversed_direction_order"):
        name = f"temporal_qa_{control}"
        yield name, results.get(name), _percent, chance
    for ending in ("", "_embedding", "_no_video", "_one_frame", "_shuffled", "_reversed"):
        yield f"twin_choice{ending}", results.get(f"twin_choice{ending}"), _percent, 0.5
    for way in ("t2v", "v2t"):
        yield f"retrieval_{way}_r1", results.get(f"retrieval_{way}_r1"), _percent, results.get("retrieval_chance_r1")
        for name in ("r5", "r10"):
            yield f"retrieval_{way}_{name}", results.get(f"retrieval_{way}_{name}"), _percent, None
        yield f"retrieval_{way}_dual_softmax_r1", results.get(f"retrieval_{way}_dual_softmax_r1"), _percent, None
        yield f"retrieval_{way}_median_rank", results.get(f"retrieval_{way}_median_rank"), _number, None
    yield "caption_cider", results.get("caption_cider"), _number, None


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.3f}"
