"""Charts as SVG text: lines over steps, nothing else. Colours are CSS variables of the page, so both themes work."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 30, 34


@dataclass(frozen=True)
class Line:
    """One line: its name and its points (x, y), sorted by x."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(lines: Sequence[Line], x_label: str = "step") -> str:
    """The lines as one SVG with ticks and a legend; non-finite points are left out. Empty text without points."""
    drawn = [Line(line.name, [point for point in line.points if _finite(point)]) for line in lines]
    drawn = [line for line in drawn if line.points]
    if not drawn:
        return ""
    x_ticks = ticks(min(p[0] for one in drawn for p in one.points), max(p[0] for one in drawn for p in one.points))
    y_ticks = ticks(min(p[1] for one in drawn for p in one.points), max(p[1] for one in drawn for p in one.points))
    frame = _Frame(x_ticks, y_ticks)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(", ".join(one.name for one in drawn))}">'
    ]
    parts += frame.axes(x_label)
    for number, line in enumerate(drawn):
        points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line.points)
        parts.append(f'<polyline class="line l{number % 6}" points="{points}"/>')
    if len(drawn) > 1:
        parts += _legend(drawn)
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers whose first and last enclose [low, high]."""
    span = high - low or abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


@dataclass(frozen=True)
class _Frame:
    """Where data coordinates lie on the drawing."""

    x_ticks: list[float]
    y_ticks: list[float]

    def x(self, value: float) -> float:
        share = (value - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def axes(self, x_label: str) -> list[str]:
        parts = []
        for value in self.y_ticks:
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
        for value in self.x_ticks:
            place = f'x="{self.x(value):.1f}" y="{HEIGHT - BOTTOM + 16}"'
            parts.append(f'<text class="tick" {place} text-anchor="middle">{value:.4g}</text>')
        place = f'x="{WIDTH - RIGHT}" y="{HEIGHT - 3}"'
        return [*parts, f'<text class="tick" {place} text-anchor="end">{escape(x_label)}</text>']


def _legend(lines: Sequence[Line]) -> list[str]:
    parts, x = [], LEFT
    for number, line in enumerate(lines):
        parts.append(f'<line class="line l{number % 6}" x1="{x}" x2="{x + 18}" y1="8" y2="8"/>')
        parts.append(f'<text class="tick" x="{x + 23}" y="12">{escape(line.name)}</text>')
        x += 44 + 7 * len(line.name)
    return parts


def _finite(point: tuple[float, float]) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])
