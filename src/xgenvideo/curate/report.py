"""The report page: a funnel with what each step took, distributions of scores with thresholds to try, and pictures of
what was kept and what was dropped and why.
"""

import base64
from collections.abc import Callable, Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from xgenvideo.curate.clips import Clip, decode_jpeg
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.stages import Item

STRIP_FRAMES, STRIP_HEIGHT, BINS = 4, 84, 24


def write_report(
    path: Path,
    items: list[Item],
    summary: dict[str, Any],
    settings: CurateSettings,
    read_clip: Callable[[str], Clip],
) -> None:
    """Write one self-contained HTML page."""
    groups: dict[str, list[Item]] = {"kept": [item for item in items if item.kept]}
    for item in sorted((item for item in items if item.reason), key=lambda item: str(item.reason)):
        groups.setdefault(str(item.reason), []).append(item)
    shown = {
        name: {"count": len(members), "cards": [_card(item, read_clip) for item in _spread(members, settings)]}
        for name, members in groups.items()
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    source = resources.files("xgenvideo.curate").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        summary=summary,
        steps=_steps(summary),
        groups=shown,
        charts=_charts(items, settings),
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


def _spread(members: list[Item], settings: CurateSettings) -> list[Item]:
    """At most `report_pictures` members, evenly spread over the input."""
    count = min(len(members), settings.report_pictures)
    return [members[round(place)] for place in np.linspace(0, len(members) - 1, count)] if count else []


def _card(item: Item, read_clip: Callable[[str], Clip]) -> dict[str, Any]:
    picture = ""
    if item.facts and item.content:
        picture = _strip(read_clip(item.content))
    drop = next((decision for decision in item.decisions if not decision.keep), None)
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


def _charts(items: list[Item], settings: CurateSettings) -> list[dict[str, Any]]:
    """Histograms of the main scores, kept and dropped apart, with the threshold where there is one."""
    alignment = "min_align_score" if settings.align_model or settings.align_column else "min_semantic_score"
    # Title, step, score, its setting, and on which side of that an input is kept; "" where that decides nothing alone.
    wanted: tuple[tuple[str, str, str, str, str], ...] = (
        ("length, seconds", "decode", "seconds", "min_seconds", "above"),
        ("words of the caption", "language", "words", "min_caption_words", "above"),
        ("chance of the language", "language", "language_score", "min_language_score", "above"),
        ("largest change of a block, levels", "motion", "change", "min_change", "above"),
        ("share changed at the worst boundary", "motion", "cut", "cut_change", ""),
        ("strokes like text", "text_overlay", "strokes", "min_strokes", ""),
        ("share of the frame under overlays", "text_overlay", "watermark_density", "max_watermark_density", "below"),
        ("sharpness, levels squared", "picture", "sharpness", "min_sharpness", "above"),
        ("black bars, share of the frame", "picture", "bars", "max_bars", "below"),
        (
            "chance of a watermark, by your model",
            "watermark_model",
            "watermark_chance",
            "max_watermark_chance",
            "below",
        ),
        ("aesthetic score, by your model", "aesthetic_model", "aesthetic", "min_aesthetic_model_score", "above"),
        ("aesthetic score, the publisher's", "aesthetics", "aesthetic", "min_aesthetic_score", "above"),
        ("alignment", "alignment", "semantic", alignment, "above"),
    )
    charts = []
    for title, step, score, setting, keeps in wanted:
        values = [(_score(item, step, score), item.kept) for item in items]
        kept = [value for value, keep in values if value is not None and keep]
        dropped = [value for value, keep in values if value is not None and not keep]
        if kept or dropped:
            threshold = getattr(settings, setting)
            about = {"title": title, "setting": setting, "keeps": keeps, "whole": isinstance(threshold, int)}
            charts.append(about | _histogram(kept, dropped, threshold))
    return charts


def _score(item: Item, step: str, name: str) -> float | None:
    found: Iterable[Any] = (d.scores.get(name) for d in item.decisions if d.step == step)
    return next((float(value) for value in found if value is not None), None)


def _histogram(kept: list[float], dropped: list[float], threshold: float) -> dict[str, Any]:
    """Bars of heights 0-100 for a stacked histogram, how many inputs each has, and where the threshold is (0-100
    across, None outside).
    """
    everything = np.array(kept + dropped)
    low, high = float(everything.min()), float(everything.max())
    high = high if high > low else low + 1
    counts = [np.histogram(values, BINS, (low, high))[0] for values in (kept, dropped)]
    most = max(1, int((counts[0] + counts[1]).max()))
    bars = [(round(100 * k / most, 1), round(100 * d / most, 1)) for k, d in zip(*counts, strict=True)]
    at = 100 * (threshold - low) / (high - low) if low <= threshold <= high else None
    spans = {"low": f"{low:.3g}", "high": f"{high:.3g}", "from": low, "to": high}
    return {"bars": bars, "counts": (counts[0] + counts[1]).tolist(), "at": at, "count": len(everything), **spans}
