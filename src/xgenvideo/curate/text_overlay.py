"""Watermarks, subtitles and other burnt-in text: a cheap test for text-like strokes, then OCR of the suspects.

OCR costs some 0.3 s a frame, so most clips must not need it. Detection alone boxes whole frames that hold no text;
only boxes that are also read count.
"""

from difflib import SequenceMatcher
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings, Decision
from xgenvideo.curate.watermark import Mark, is_mark, overlay_density
from xgenvideo.errors import MissingExtra

PROBED_FRAMES = 8
STROKE_LEVELS = 18  # of 255: the contrast of a stroke thinner than 7 pixels
WINDOW = 96
ROWS = 4

Box = dict[str, Any]


def suspect_text(frames: NDArray[np.uint8]) -> dict[str, Any]:
    """How text-like frames [F H W 3] are: `strokes`, thin strokes side by side in the second-worst frame."""
    places = np.unique(np.linspace(0, len(frames) - 1, PROBED_FRAMES).round().astype(int))
    counts = sorted((_strokes(frames[place]) for place in places), reverse=True)
    # The second worst: text stays longer than one frame in eight, an odd frame does not.
    return {"strokes": counts[min(1, len(counts) - 1)]}


def _strokes(frame: NDArray[np.uint8]) -> int:
    """Most thin light (or dark) strokes that `ROWS` rows in a row cross within `WINDOW` pixels."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    most = 0.0
    for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        mask = cv2.morphologyEx(grey, kind, np.ones((7, 7), np.uint8)) > STROKE_LEVELS
        starts = np.zeros(mask.shape, np.float32)
        starts[:, 1:] = mask[:, 1:] & ~mask[:, :-1]
        window = (min(WINDOW, mask.shape[1]), 1)
        crossed = cv2.boxFilter(starts, -1, window, normalize=False, borderType=cv2.BORDER_CONSTANT)
        most = max(most, float(cv2.erode(crossed, np.ones((ROWS, 1), np.uint8)).max()))
    return round(most)


class TextReader:
    """RapidOCR with the models of its package; loaded once, when it is first needed."""

    def __init__(self, settings: CurateSettings) -> None:
        try:
            from rapidocr import RapidOCR
        except ModuleNotFoundError as error:
            raise MissingExtra("rapidocr", "curate") from error
        self._settings = settings
        parameters = {
            "Global.log_level": "error",
            "Global.use_cls": False,
            "Det.limit_side_len": settings.ocr_side,
            "Det.limit_type": "max",
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,  # each thread has an engine
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
        self._engine = RapidOCR(params=parameters)

    def read(self, frame: NDArray[np.uint8]) -> list[Box]:
        """Boxes of text in a frame [H W 3] RGB that were read well: text, score, place as fractions."""
        height, width = frame.shape[:2]
        scale = self._settings.ocr_side / max(height, width)
        size = max(32, round(width * scale)), max(32, round(height * scale))
        found: Any = self._engine(cv2.resize(frame, size, interpolation=cv2.INTER_CUBIC)[..., ::-1])
        if found.boxes is None or found.txts is None or found.scores is None:
            return []
        boxes = []
        for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
            letters = sum(char.isalnum() for char in text)
            if score >= self._settings.min_text_score and letters >= self._settings.min_text_letters:
                points = np.asarray(corners, float) / size
                place = [*points.min(axis=0).clip(0, 1), *points.max(axis=0).clip(0, 1)]
                boxes.append(
                    {"text": text, "score": round(float(score), 3), "place": [round(float(v), 4) for v in place]}
                )
        return boxes


def judge_text(frames: list[list[Box]], settings: CurateSettings, marks: list[Mark] | None = None) -> Decision:
    """Drop `watermark` (the same words in all frames, in place or wandering, or a mark without letters) and `subtitle`
    (changing words in a line). `text_overlay` is much text that is neither. Words of the scene itself, on one frame
    only or small, are kept. `frames`: the boxes read on each frame; `marks`: what `measure_marks` answered.
    """
    shares = [[_shares(box, frames) for box in boxes] for boxes in frames]
    stays = max((share[0] for row in shares for share in row), default=0.0)
    follows = max((share[1] for row in shares for share in row), default=0.0)
    overlaid = [
        [box["place"] for box, share in zip(boxes, row, strict=True) if max(share) >= settings.min_watermark_share]
        for boxes, row in zip(frames, shares, strict=True)
    ]
    drawn = [mark for mark in marks or [] if is_mark(mark, settings)]
    density = overlay_density(drawn, overlaid)
    line = _subtitle_frames(frames)
    areas = [sum(_area(box) for box in boxes) for boxes in frames]
    text_density = float(np.median(areas)) if areas else 0.0
    scores = {
        "watermark_density": density,
        "watermark_in_place": round(stays, 4),
        "watermark_wandering": round(follows, 4),
        "marks": drawn,
        "subtitle_frames": line,
        "text_density": round(text_density, 4),
        "texts": sorted({box["text"] for boxes in frames for box in boxes})[:12],
    }
    reason = None
    if any(overlaid) and density > settings.max_watermark_density:
        reason = "watermark"
    elif line >= settings.min_subtitle_frames:
        reason = "subtitle"
    elif drawn and density > settings.max_watermark_density:
        reason = "watermark"
    elif text_density > settings.max_text_density:
        reason = "text_overlay"
    return Decision("text_overlay", reason, scores)


def _area(box: Box) -> float:
    left, top, right, bottom = box["place"]
    return float((right - left) * (bottom - top))


def _overlap(one: Box, two: Box) -> float:
    """Intersection over union of two places."""
    a, b = one["place"], two["place"]
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    return float(shared / max(1e-9, _area(one) + _area(two) - shared))


def _same_words(one: Box, two: Box) -> bool:
    a, b = ("".join(filter(str.isalnum, box["text"])).lower() for box in (one, two))
    return bool(SequenceMatcher(None, a, b).ratio() >= 0.6 or (min(len(a), len(b)) >= 4 and (a in b or b in a)))


def _same_size(one: Box, two: Box) -> bool:
    heights = sorted(box["place"][3] - box["place"][1] for box in (one, two))
    return bool(heights[0] >= 0.7 * heights[1])


def _shares(box: Box, frames: list[list[Box]]) -> tuple[float, float]:
    """Share of frames that hold the words of a box in its place, and that hold them at its size anywhere."""
    if len(frames) < 2:
        return 0.0, 0.0
    alike = [[other for other in boxes if _same_words(box, other)] for boxes in frames]
    stays = sum(any(_overlap(box, other) >= 0.5 for other in others) for others in alike)
    follows = 0
    if sum(map(str.isalnum, box["text"])) >= 4:  # short words come back by chance
        follows = sum(any(_same_size(box, other) for other in others) for others in alike)
    return stays / len(frames), follows / len(frames)


def _subtitle_frames(frames: list[list[Box]]) -> int:
    """Frames with a centred line in the lower part, of which at least two differ in their words."""
    lines = []
    for boxes in frames:
        for box in boxes:
            left, top, right, bottom = box["place"]
            centred = abs((left + right) / 2 - 0.5) < 0.12 and right - left > 0.2
            if centred and top > 0.65 and bottom - top < 0.15:
                lines.append(box)
                break
    changing = any(not _same_words(lines[0], line) for line in lines[1:])
    return len(lines) if changing else 0
