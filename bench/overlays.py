"""Overlays burnt into real clips: what the text filter finds of them, and what it drops of the clips as they are.

Run: python bench/overlays.py FOLDER --clips 88 --json bench/results/overlays.json. FOLDER holds real clips (.mp4),
read in place. Overlays are drawn into the sampled frames, before these are compressed as curation stores them. A clip
that is dropped as it is counts as a false alarm, though some carry a watermark of their publisher: precision is a
lower bound.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.clips import Clip
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.text_overlay import TextReader, judge_text, suspect_text
from xgenvideo.data.video import sample_video
from xgenvideo.records import SampledVideo

Frames = NDArray[np.uint8]
REASONS = ("watermark", "subtitle", "text_overlay")
LINES = ("and then we went on to the river", "nobody had told me about that", "so here is what I would do now")


def _write(frame: Frames, text: str, place: tuple[float, float], share: float, strength: float = 1.0) -> None:
    """White letters with a dark edge, `share` of the frame's height high, their left foot at `place` (fractions)."""
    height, width = frame.shape[:2]
    scale = share * height / 22
    at = round(place[0] * width), round(place[1] * height)
    drawn = frame.copy()
    cv2.putText(drawn, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (20, 20, 20), 3, cv2.LINE_AA)
    cv2.putText(drawn, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (250, 250, 250), 1, cv2.LINE_AA)
    frame[:] = cv2.addWeighted(drawn, strength, frame, 1 - strength, 0)


def corner_text(frames: Frames) -> None:
    """A name in the lower right corner."""
    for frame in frames:
        _write(frame, "CLIPHOUSE", (0.66, 0.95), 0.05)


def transparent(frames: Frames) -> None:
    """The same name across the middle, at 45 %."""
    for frame in frames:
        _write(frame, "CLIPHOUSE", (0.3, 0.55), 0.09, strength=0.45)


def moving(frames: Frames) -> None:
    """A name that wanders from frame to frame."""
    for number, frame in enumerate(frames):
        _write(frame, "CLIPHOUSE", (0.05 + 0.07 * (number % 8), 0.15 + 0.11 * (number % 7)), 0.06)


def subtitle(frames: Frames) -> None:
    """A centred line that changes every 1.5 s."""
    for number, frame in enumerate(frames):
        text = LINES[number // 3 % len(LINES)]
        _write(frame, text, (0.5 - 0.011 * len(text), 0.93), 0.05)


def logo(frames: Frames) -> None:
    """A ring with a bar in the upper right corner: no letters."""
    height, width = frames.shape[1:3]
    centre, radius = (round(0.92 * width), round(0.12 * height)), round(0.06 * height)
    for frame in frames:
        cv2.circle(frame, centre, radius, (245, 245, 245), 3, cv2.LINE_AA)
        cv2.line(frame, (centre[0] - radius, centre[1]), (centre[0] + radius, centre[1]), (230, 60, 40), 4)


OVERLAYS: dict[str, Callable[[Frames], None]] = {
    "corner_text": corner_text, "transparent": transparent, "moving": moving, "subtitle": subtitle, "logo": logo
}  # fmt: skip


def judged(sampled: SampledVideo, reader: TextReader, settings: CurateSettings) -> str | None:
    """The reason code that curation gives these frames for text."""
    if suspect_text(sampled.frames)["strokes"] < settings.min_strokes:
        return None
    clip = Clip.from_sampled(sampled, settings.jpeg_quality)
    return judge_text([reader.read(frame) for frame in clip.frames(settings.ocr_frames)], settings).reason


def measure(paths: list[Path]) -> dict[str, Any]:
    """Every clip as it is and with each overlay; recall by overlay, false alarms, precision and recall over all."""
    settings = CurateSettings()
    reader = TextReader(settings)
    plain: dict[str, str | None] = {}
    found = dict.fromkeys(OVERLAYS, 0)
    for path in paths:
        sampled = sample_video(path, settings.fps, settings.max_frames, short_side=settings.short_side)
        plain[path.name] = judged(sampled, reader, settings)
        for name, burn in OVERLAYS.items():
            frames = sampled.frames.copy()
            burn(frames)
            burnt = SampledVideo(frames, sampled.pts, sampled.indices, sampled.seconds)
            found[name] += judged(burnt, reader, settings) in REASONS
    alarms = sum(reason is not None for reason in plain.values())
    hits, burnt_clips = sum(found.values()), len(paths) * len(OVERLAYS)
    return {
        "clips": len(paths),
        "recall": {name: round(count / len(paths), 4) for name, count in found.items()},
        "recall_all": round(hits / burnt_clips, 4),
        "false_alarm_share": round(alarms / len(paths), 4),
        # Each overlay's clips against as many clips as they are.
        "precision": {name: round(count / max(1, count + alarms), 4) for name, count in found.items()},
    }


def main() -> None:
    """Print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=88)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    cv2.setNumThreads(1)
    figures = measure(sorted(parsed.folder.glob("*.mp4"))[: parsed.clips])
    print(json.dumps(figures, indent=1))
    if parsed.json:
        parsed.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
