"""A timeline as a trace for Perfetto and as a picture; time against GPUs and memory by stage as pictures (SVG)."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from xgenvideo.plan.memory import GIBIBYTE, RankMemory
from xgenvideo.plan.simulate import Timeline

COLOURS = {
    "visual": "#8e6bbf",
    "text": "#e0a030",
    "forward": "#4a90d9",
    "backward": "#3aa66f",
    "weight": "#9fd3b6",
    "traffic": "#c0504d",
    "optimizer": "#777777",
    "waiting": "#d9d9d9",
}
KINDS = ("weights", "gradients", "optimizer", "encoder", "visual_activations", "decoder_activations", "buffers")
KIND_COLOURS = ("#4a90d9", "#3aa66f", "#777777", "#8e6bbf", "#c9a0e8", "#e0a030", "#c0504d")
WIDTH, LEFT, ROW = 1100, 90, 26


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The timeline in the Chrome trace format, microseconds; ui.perfetto.dev opens it."""
    ranks = sorted({event.rank for event in timeline.events})
    names = [
        {"ph": "M", "pid": 0, "tid": rank, "name": "thread_name", "args": {"name": f"pipeline rank {rank}"}}
        for rank in ranks
    ]
    bars = [
        {
            "ph": "X",
            "pid": 0,
            "tid": event.rank,
            "name": event.name,
            "cat": event.kind,
            "ts": event.start * 1e6,
            "dur": (event.end - event.start) * 1e6,
        }
        for event in timeline.events
    ]
    return {"displayTimeUnit": "ms", "traceEvents": [*names, *bars]}


def timeline_svg(timeline: Timeline, title: str) -> str:
    """One bar a rank, coloured by what it does."""
    ranks = 1 + max(event.rank for event in timeline.events)
    scale = (WIDTH - LEFT - 20) / timeline.seconds
    parts = [
        f'<rect x="{LEFT + event.start * scale:.2f}" y="{40 + event.rank * ROW}" '
        f'width="{max(0.2, (event.end - event.start) * scale):.2f}" height="{ROW - 4}" fill="{COLOURS[event.kind]}">'
        f"<title>{escape(event.name)}</title></rect>"
        for event in timeline.events
    ]
    parts += [_text(8, 40 + rank * ROW + 16, f"rank {rank}") for rank in range(ranks)]
    bottom = 40 + ranks * ROW
    parts += [
        _text(LEFT + i / 5 * timeline.seconds * scale, bottom + 16, f"{i / 5 * timeline.seconds:.2f} s")
        for i in range(6)
    ]
    shown = [kind for kind in COLOURS if any(event.kind == kind for event in timeline.events)]
    parts += _legend(shown, [COLOURS[kind] for kind in shown], bottom + 30)
    return _svg(title, parts, bottom + 56)


def memory_svg(ranks: Sequence[RankMemory], limit: float, title: str) -> str:
    """Memory of every pipeline rank by kind, and the GPU's limit as a line."""
    scale = (WIDTH - LEFT - 60) / max(limit, *(rank.total for rank in ranks))
    parts = []
    for place, rank in enumerate(ranks):
        at, y = float(LEFT), 40 + place * ROW
        sizes = [getattr(rank, kind) for kind in KINDS]
        for size, colour in zip((*sizes, rank.total - rank.counted), (*KIND_COLOURS, "#d9d9d9"), strict=True):
            parts.append(f'<rect x="{at:.1f}" y="{y}" width="{size * scale:.1f}" height="{ROW - 4}" fill="{colour}"/>')
            at += size * scale
        parts += [_text(8, y + 16, f"rank {rank.rank}"), _text(at + 4, y + 16, f"{rank.total / GIBIBYTE:.1f} GiB")]
    bottom, x = 40 + len(ranks) * ROW, LEFT + limit * scale
    parts.append(f'<line x1="{x:.1f}" y1="34" x2="{x:.1f}" y2="{bottom}" stroke="#c00000" stroke-dasharray="4 3"/>')
    parts += _legend([*(kind.replace("_", " ") for kind in KINDS), "margins"], [*KIND_COLOURS, "#d9d9d9"], bottom + 14)
    return _svg(title, parts, bottom + 40)


def days_svg(points: Sequence[tuple[int, float, float, float]], title: str) -> str:
    """Days against GPUs: (GPUs, days, low, high), both axes from 0, the range as a bar."""
    height, base = 320, 340
    most, longest = max(point[0] for point in points), max(point[3] for point in points)
    across, up = (WIDTH - LEFT - 60) / most, (height - 40) / longest
    parts, corners = [], []
    for gpus, days, low, high in points:
        x, y = LEFT + gpus * across, base - days * up
        corners.append(f"{x:.1f},{y:.1f}")
        parts.append(
            f'<line x1="{x:.1f}" y1="{base - low * up:.1f}" x2="{x:.1f}" y2="{base - high * up:.1f}" stroke="#888"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#4a90d9"/>'
        )
        parts += [_text(x + 6, y - 6, f"{days:.3g} d"), _text(x - 10, base + 18, str(gpus))]
    parts.append(f'<polyline points="{" ".join(corners)}" fill="none" stroke="#4a90d9"/>')
    parts.append(_text(LEFT, base + 36, "GPUs"))
    return _svg(title, parts, base + 46)


def write_text(path: Path, text: str) -> None:
    """Write a picture or a trace, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def trace_text(timeline: Timeline) -> str:
    """chrome_trace as JSON text."""
    return json.dumps(chrome_trace(timeline))


def _legend(names: Sequence[str], colours: Sequence[str], y: float) -> list[str]:
    parts = []
    for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
        x = LEFT + place * 125
        parts += [f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>', _text(x + 16, y + 11, name)]
    return parts


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-family="sans-serif" font-size="12">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str], height: float) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', _text(8, 20, title), *parts, "</svg>\n"])
