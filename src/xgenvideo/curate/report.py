"""The report page: a funnel with what each step took, distributions of scores with thresholds to try, and pictures of
what was kept and what was dropped and why.
"""

import base64
import math
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from xgenvideo.curate.clips import Clip, decode_jpeg
from xgenvideo.curate.inputs import Item
from xgenvideo.curate.settings import CurateSettings

STRIP_FRAMES, STRIP_HEIGHT, BINS = 4, 84, 24


def write_report(
    path: Path,
    items: Iterable[Item],
    summary: dict[str, Any],
    settings: CurateSettings,
    read_clip: Callable[[str], Clip],
) -> None:
    """Write one self-contained HTML page. `items` are gone through twice, and not held."""
    counts = {"kept": summary["pairs_kept"]} | dict(sorted(summary["dropped"].items()))
    groups = {name: _Group(count, settings.report_pictures) for name, count in counts.items()}
    charts = [_Chart(*about, settings) for about in _wanted(settings)]
    for item in items:
        groups[item.reason or "kept"].see(item)
        for chart in charts:
            chart.measure(item)
    for item in items:
        for chart in charts:
            chart.count(item)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = resources.files("xgenvideo.curate").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        summary=summary,
        steps=_steps(summary),
        groups={name: group.shown(read_clip) for name, group in groups.items()},
        charts=[chart.shown() for chart in charts if chart.values],
        settings=settings.to_dict(),
    )
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def _steps(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each step of the funnel: inputs left, processor seconds over all processes, inputs a second of one core."""
    steps, came = [], summary["pairs_in"]
    for name, left in summary["funnel"].items():
        seconds = summary["timings"].get(name)
        steps.append({"name": name, "left": left, "seconds": seconds, "rate": came / seconds if seconds else None})
        came = left
    return steps


class _Group:
    """Inputs with one outcome, of which a few are shown, evenly spread over the input."""

    def __init__(self, count: int, most: int) -> None:
        self._count, self._seen = count, 0
        self._places = set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist())
        self._members: list[Item] = []

    def see(self, item: Item) -> None:
        """The next of them."""
        if self._seen in self._places:
            self._members.append(item)
        self._seen += 1

    def shown(self, read_clip: Callable[[str], Clip]) -> dict[str, Any]:
        """For the page."""
        return {"count": self._count, "cards": [_card(item, read_clip) for item in self._members]}


def _card(item: Item, read_clip: Callable[[str], Clip]) -> dict[str, Any]:
    picture = ""
    if item.facts and item.content:
        picture = _strip(read_clip(item.content))
    drop = item.drop
    notes = [
        f"{name} {_short(value)}" for name, value in (drop.scores if drop else {}).items() if value not in (None, [])
    ]
    return {
        "name": item.entry.name,
        "caption": item.entry.pair.caption if item.entry.pair else "",
        "picture": picture,
        "detail": drop.detail if drop else "",
        "notes": "; ".join(notes[:6]),
    }


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _strip(clip: Clip) -> str:
    """A few frames side by side, as a data URL."""
    places = np.unique(np.linspace(0, len(clip.jpegs) - 1, STRIP_FRAMES).round().astype(int))
    frames = [decode_jpeg(clip.jpegs[place]) for place in places]
    width = max(16, min(200, round(frames[0].shape[1] * STRIP_HEIGHT / frames[0].shape[0])))
    strip = np.hstack([cv2.resize(frame, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA) for frame in frames])
    content = cv2.imencode(".jpg", strip[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])[1].tobytes()
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def _wanted(settings: CurateSettings) -> tuple[tuple[str, str, str, str, str], ...]:
    """Title, step, score, its setting, and on which side of that an input is kept ("": it decides nothing alone)."""
    alignment = "min_align_score" if settings.align_model or settings.align_column else "min_semantic_score"
    classified = ("chance of a watermark, by your model", "watermark_model", "watermark_chance", "max_watermark_chance")
    return (
        ("length, seconds", "decode", "seconds", "min_seconds", "above"),
        ("words of the caption", "language", "words", "min_caption_words", "above"),
        ("chance of the language", "language", "language_score", "min_language_score", "above"),
        ("largest change of a block, levels", "motion", "change", "min_change", "above"),
        ("share changed at the worst boundary", "motion", "cut", "cut_change", ""),
        ("strokes like text", "text_overlay", "strokes", "min_strokes", ""),
        ("share of the frame under overlays", "text_overlay", "watermark_density", "max_watermark_density", "below"),
        ("sharpness, levels squared", "picture", "sharpness", "min_sharpness", "above"),
        ("black bars, share of the frame", "picture", "bars", "max_bars", "below"),
        (*classified, "below"),
        ("aesthetic score, by your model", "aesthetic_model", "aesthetic", "min_aesthetic_model_score", "above"),
        ("aesthetic score, the publisher's", "aesthetics", "aesthetic", "min_aesthetic_score", "above"),
        ("alignment", "alignment", "semantic", alignment, "above"),
    )


class _Chart:
    """A histogram of one score, kept and dropped apart, with the threshold. Its range is found before it is filled."""

    def __init__(self, title: str, step: str, score: str, setting: str, keeps: str, settings: CurateSettings) -> None:
        self._step, self._score, self._threshold = step, score, getattr(settings, setting)
        whole = isinstance(self._threshold, int)
        self._about = {"title": title, "setting": setting, "keeps": keeps, "whole": whole}
        self.values = 0
        self._low, self._high = math.inf, -math.inf
        self._kept, self._dropped = [0] * BINS, [0] * BINS

    def _of(self, item: Item) -> float | None:
        for decision in item.decisions:
            if decision.step == self._step and decision.scores.get(self._score) is not None:
                return float(decision.scores[self._score])
        return None

    def measure(self, item: Item) -> None:
        """Let the range hold the item's score."""
        value = self._of(item)
        if value is not None:
            self.values += 1
            self._low, self._high = min(self._low, value), max(self._high, value)

    def count(self, item: Item) -> None:
        """Count the item's score."""
        value = self._of(item)
        if value is not None:
            place = min(BINS - 1, int(BINS * (value - self._low) / self._span))
            (self._kept if item.kept else self._dropped)[place] += 1

    @property
    def _span(self) -> float:
        return self._high - self._low or 1.0

    def shown(self) -> dict[str, Any]:
        """For the page: bars of heights 0-100, kept and dropped, how many inputs each has, and where the threshold is
        (0-100 across, None outside).
        """
        counts = [kept + dropped for kept, dropped in zip(self._kept, self._dropped, strict=True)]
        scale = 100 / max(1, *counts)
        bars = [(round(scale * k, 1), round(scale * d, 1)) for k, d in zip(self._kept, self._dropped, strict=True)]
        low, high = self._low, self._low + self._span
        at = 100 * (self._threshold - low) / self._span if low <= self._threshold <= high else None
        ends = {"low": f"{low:.3g}", "high": f"{high:.3g}", "from": low, "to": high}
        return self._about | ends | {"bars": bars, "counts": counts, "at": at, "count": self.values}
