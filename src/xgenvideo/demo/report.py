"""The report page of the demonstration: one HTML file that needs nothing else, drawn from what was measured."""

import base64
import io
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from xgenvideo.demo.charts import Line, line_chart
from xgenvideo.demo.score import REASONS, Target
from xgenvideo.evaluate.needle import Cell, heat_map
from xgenvideo.records import Sample

NOT_MEASURED = "not measured"
STRIP_FRAMES = 8
STRIP_PIXELS = 132


@dataclass(frozen=True)
class Answered:
    """One held-out clip with what the released model wrote about it, beside what is true."""

    key: str
    seconds: float
    pictures: tuple[str, ...]
    times: tuple[float, ...]
    caption_true: str
    caption_given: str
    question: str
    options: tuple[str, ...]
    answer_true: str
    answer_given: str

    @property
    def right(self) -> bool:
        """Whether the question was answered rightly."""
        return self.answer_true == self.answer_given

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class ReportData:
    """All that the page shows."""

    title: str
    summary: dict[str, Any]
    targets: list[Target]
    metrics: list[dict[str, Any]]
    answered: list[Answered]
    real: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)


def write_report(path: Path, data: ReportData) -> None:
    """Write the page; replaces an older one at once."""
    pages = Environment(loader=PackageLoader("xgenvideo.demo"), autoescape=True, undefined=StrictUndefined)
    pages.filters |= {"figure": figure, "percent": percent}
    text = pages.get_template("report.html").render(
        data=data,
        summary=data.summary,
        reached=sum(target.reached for target in data.targets),
        charts=charts(data.metrics),
        controls=controls(data.summary),
        filters=filters(data.summary),
        confusion=confusion_table(data.summary["filter_confusion"]),
        stages=shares(data.summary["seconds_by_stage"]),
        needle_map=needle_map(data.summary),
    )
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def needle_map(summary: dict[str, Any]) -> str:
    """SVG of what was found of clips hidden in long videos; empty where nobody looked."""
    cells = [Cell(**values) for values in summary.get("needle", {}).get("cells", [])]
    return heat_map(cells) if cells else ""


def charts(metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Title and SVG of every curve that the metrics have points for."""
    wanted = {
        "Loss": [
            ("sum", "loss"),
            ("sum, held out", "heldout_loss"),
            ("next token", "loss_next_token"),
            ("contrastive", "loss_contrastive"),
        ],
        "Learning rate": [("lr", "lr")],
        "Gradient norm": [("norm", "grad_norm")],
    }
    drawn = [(title, line_chart([_line(metrics, *line) for line in lines])) for title, lines in wanted.items()]
    gates = sorted({name for row in metrics for name in row.get("gates", {})})
    lines = [
        Line(_gate_name(gate), [(row["step"], row["gates"][gate]) for row in metrics if gate in row.get("gates", {})])
        for gate in gates
    ]
    drawn.append(("Gates: tanh, 0 is closed", line_chart(lines)))
    return [(title, svg) for title, svg in drawn if svg]


def _line(metrics: list[dict[str, Any]], name: str, key: str) -> Line:
    return Line(name, [(row["step"], row[key]) for row in metrics if row.get(key) is not None and "step" in row])


def _gate_name(gate: str) -> str:
    return gate.replace("_gate", "").replace(".", " ")


def controls(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Accuracy of temporal questions with the video, and with each control that takes time away."""
    rows = [
        ("the video", "temporal_qa", "frames in order, at their times"),
        ("no video", "temporal_qa_no_video", "the text alone"),
        ("one frame", "temporal_qa_one_frame", "the middle frame"),
        ("shuffled", "temporal_qa_shuffled", "all frames, in no order"),
        ("reversed", "temporal_qa_reversed", "all frames, last to first"),
        ("reversed", "temporal_qa_reversed_direction_order", "the same, direction and order only"),
    ]
    return [
        {"name": name, "value": summary[key], "note": note, "main": key == "temporal_qa"} for name, key, note in rows
    ]


def filters(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a planted defect: counts, precision, recall."""
    return [
        {
            "name": defect.replace("_", " "),
            **counts,
            "precision": summary["filter_precision"][defect],
            "recall": summary["filter_recall"][defect],
        }
        for defect, counts in summary["filter_counts"].items()
    ]


def confusion_table(counts: dict[str, dict[str, int]]) -> dict[str, Any]:
    """Outcomes as columns ("kept" first), planted defects as rows; a cell has its count and whether it is right.

    All reasons that are right for one defect share a column, so that the right cells lie on a diagonal.
    """
    merged = {defect: Counter[str]() for defect in counts}
    for defect, row in counts.items():
        for outcome, count in row.items():
            merged[defect][_column(outcome)] += count
    order = ["kept", *(_column(min(reasons)) for reasons in REASONS.values())]
    found = {column for row in merged.values() for column in row}
    columns = [column for column in order if column in found] + sorted(found - set(order))
    rows = []
    for defect, row in merged.items():
        right = _column(min(REASONS[defect])) if defect in REASONS else "kept"
        cells = [{"count": row[column], "right": column == right} for column in columns]
        rows.append({"name": defect.replace("_", " "), "cells": cells})
    return {"columns": columns, "rows": rows}


def _column(outcome: str) -> str:
    """The name of the column of an outcome."""
    merged = next((defect for defect, reasons in REASONS.items() if outcome in reasons and len(reasons) > 1), None)
    return (f"{merged} file" if merged else outcome).replace("_", " ")


def shares(seconds: dict[str, float]) -> list[dict[str, Any]]:
    """Seconds of each stage and its share of the whole, in percent."""
    whole = sum(seconds.values()) or 1.0
    return [{"name": name, "seconds": value, "share": 100 * value / whole} for name, value in seconds.items()]


def strip(sample: Sample, count: int = STRIP_FRAMES) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """At most `count` evenly spaced frames of a sample as data URIs, and their times in seconds."""
    frames = len(sample.jpegs)
    chosen = sorted({round(i * (frames - 1) / max(count - 1, 1)) for i in range(min(count, frames))})
    return tuple(picture(sample.jpegs[i]) for i in chosen), tuple(sample.pts[i] for i in chosen)


def picture(jpeg: bytes, pixels: int = STRIP_PIXELS) -> str:
    """A JPEG as a small data URI."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    image.thumbnail((2 * pixels, pixels))
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def figure(value: Any) -> str:
    """A number for people: counts with commas, shares with three places, larger ones without."""
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    """A share as percent."""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
