"""Watermarks without letters, half-transparent ones too: edges that stay in place while the rest of the picture moves.

The temporal median of the gradient keeps what is drawn over every frame and loses what moves (Dekel et al., "On the
Effectiveness of Visible Watermarks", CVPR 2017). A mark is a compact island of such edges: in a fixed camera's picture
the scene stays as well, but fills the frame; there only a mark far stronger than what surrounds it is told apart.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings

PROBED_FRAMES = 9
# Of 255 a pixel. An island at the lowest level may be faint; at a higher one the weaker scene around it falls away.
LEVELS = (16.0, 32.0, 64.0)
SPREAD = 0.4  # of the median gradient: how far a staying edge's gradient may lie from it, in the median frame
REACH = 9  # pixels that strokes of one mark may lie apart
LEAST_PIXELS, LEAST_SIDE, MOST_AREA = 100, 6, 0.25
MOST_LEAN = 0.4  # a drawn shape has two sides, whose gradients cancel; the edge of a table has one
MOST_BASE = 0.6  # faint staying edges around an island of a higher level, over its own
STORED = 8

Picture = NDArray[np.float32]
Mark = dict[str, Any]


def measure_marks(frames: NDArray[np.uint8]) -> list[Mark]:
    """Islands of staying edges in frames [F H W 3] RGB, at most eight, the strongest first.

    Each has its `place` (left, top, right, bottom as fractions), `fill` (share of the place that is staying edges),
    `contrast` (mean gradient over the place, levels a pixel), `around` (staying edges about it, over its own) and
    `present` (share of the frames probed that hold it).
    """
    across, down = _gradients(frames)
    if len(across) < 3:  # what stays cannot be told from what is there
        return []
    steady_x, steady_y = _steady(across, down)
    strength = np.hypot(steady_x, steady_y)
    _remove_bars(strength)
    marks: list[Mark] = []
    for level in LEVELS:
        for mark, inside in _islands(strength, steady_x, steady_y, level):
            mark["present"] = _present(across, down, steady_x, steady_y, inside)
            marks.append(mark)
    return sorted(marks, key=lambda mark: -mark["contrast"] * _area(mark))[:STORED]


def _gradients(frames: NDArray[np.uint8]) -> tuple[Picture, Picture]:
    """Brightness gradients [F H W] of a few frames, across and down."""
    places = np.unique(np.linspace(0, len(frames) - 1, PROBED_FRAMES).round().astype(int))
    grey = [cv2.GaussianBlur(cv2.cvtColor(frames[place], cv2.COLOR_RGB2GRAY), (3, 3), 0) for place in places]
    across = np.stack([cv2.Sobel(picture, cv2.CV_32F, 1, 0, ksize=3, scale=0.25) for picture in grey])
    down = np.stack([cv2.Sobel(picture, cv2.CV_32F, 0, 1, ksize=3, scale=0.25) for picture in grey])
    return across.astype(np.float32), down.astype(np.float32)


def _steady(across: Picture, down: Picture) -> tuple[Picture, Picture]:
    """The median gradient [H W] where it stays, zero elsewhere."""
    frames, height, width = across.shape
    # Means are cheap and medians are not: most pixels are ruled out by their mean.
    likely = np.flatnonzero(cv2.magnitude(across.mean(axis=0), down.mean(axis=0)).ravel() > 0.6 * LEVELS[0])
    xs, ys = across.reshape(frames, -1)[:, likely], down.reshape(frames, -1)[:, likely]
    x, y = np.median(xs, axis=0), np.median(ys, axis=0)
    size = np.hypot(x, y)
    stays = (size > LEVELS[0]) & (np.median(np.hypot(xs - x, ys - y), axis=0) < SPREAD * size)
    steady = np.zeros((2, height * width), np.float32)
    steady[:, likely[stays]] = x[stays], y[stays]
    pictures = steady.reshape(2, height, width)
    pictures[:, :2] = pictures[:, -2:] = pictures[:, :, :2] = pictures[:, :, -2:] = 0  # the frame's own rim
    return pictures[0], pictures[1]


def _remove_bars(strength: Picture) -> None:
    """Take away lines straight over a quarter of the picture: the edges of black bars, of tables, of windows."""
    height, width = strength.shape
    staying = (strength > 0).astype(np.uint8)
    rows = cv2.erode(staying, np.ones((1, max(3, width // 4)), np.uint8)).any(axis=1)
    columns = cv2.erode(staying, np.ones((max(3, height // 4), 1), np.uint8)).any(axis=0)
    strength[np.convolve(rows, np.ones(3), "same") > 0] = 0
    strength[:, np.convolve(columns, np.ones(3), "same") > 0] = 0


def _islands(strength: Picture, x: Picture, y: Picture, level: float) -> list[tuple[Mark, NDArray[np.bool_]]]:
    """Compact groups of edges over a level, each with the mask [H W] of its pixels."""
    strong = strength > level
    joined = cv2.dilate(strong.astype(np.uint8), np.ones((REACH, REACH), np.uint8))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    found = []
    for number in range(1, count):
        if boxes[number, cv2.CC_STAT_AREA] >= LEAST_PIXELS:
            inside = (labels == number) & strong
            mark = _describe(strength, x, y, inside, level) if np.count_nonzero(inside) >= LEAST_PIXELS else None
            if mark is not None:
                found.append((mark, inside))
    return found


def _describe(strength: Picture, x: Picture, y: Picture, inside: NDArray[np.bool_], level: float) -> Mark | None:
    """What is known of an island; None where it is no drawn shape."""
    height, width = strength.shape
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    tall, wide = bottom - top, right - left
    total, pixels = float(strength[inside].sum()), int(np.count_nonzero(inside))
    lean = float(np.hypot(x[inside].sum(), y[inside].sum())) / total
    if min(tall, wide) < LEAST_SIDE or tall * wide > MOST_AREA * strength.size or lean > MOST_LEAN:
        return None
    above, aside = max(8, tall // 2), max(8, wide // 2)
    about = strength[max(0, top - above) : bottom + above, max(0, left - aside) : right + aside]
    base = int(np.count_nonzero(about)) - np.count_nonzero(strength[top:bottom, left:right])
    if level > LEVELS[0] and base > MOST_BASE * pixels:
        return None
    place = (left / width, top / height, right / width, bottom / height)
    return {
        "place": [round(value, 4) for value in place],
        "fill": round(pixels / (tall * wide), 4),
        "contrast": round(total / (tall * wide), 2),
        "around": round(float(np.count_nonzero(about > level) - pixels) / pixels, 4),
    }


def _present(across: Picture, down: Picture, x: Picture, y: Picture, inside: NDArray[np.bool_]) -> float:
    """Share of the frames whose gradients inside the mask agree with the steady ones."""
    wanted = np.concatenate([x[inside], y[inside]])
    seen = np.concatenate([across[:, inside], down[:, inside]], axis=1)
    alike = seen @ wanted / np.maximum(1e-6, np.linalg.norm(seen, axis=1) * np.linalg.norm(wanted))
    return round(float((alike > 0.5).mean()), 4)


def _area(mark: Mark) -> float:
    left, top, right, bottom = mark["place"]
    return float((right - left) * (bottom - top))


def is_mark(mark: Mark, settings: CurateSettings) -> bool:
    """Whether an island of staying edges is drawn over the picture, and no part of a scene that stands still."""
    # The larger an island the fuller it has to be: the outline of a large thing that stands still is hollow.
    fill = settings.min_mark_fill if _area(mark) < settings.large_mark else settings.min_large_mark_fill
    return bool(
        mark["fill"] >= fill
        and mark["contrast"] >= settings.min_mark_contrast
        and mark["around"] <= settings.max_mark_around
        and mark["present"] >= settings.min_mark_present
    )


def overlay_density(marks: list[Mark], boxes: list[list[Any]]) -> float:
    """Area that overlays cover times the frames they are present in, over the frame's area times all frames (0-1).

    `boxes`: for each frame that was read the places of its overlaid text.
    """
    covered = np.zeros((64, 64), np.float32)
    for frame in boxes:
        seen = np.zeros_like(covered)
        for place in frame:
            seen[_cells(place)] = 1
        covered += seen / len(boxes)
    for mark in marks:
        cells = _cells(mark["place"])
        covered[cells] = np.maximum(covered[cells], mark["present"])
    return round(float(covered.mean()), 4)


def _cells(place: list[float]) -> tuple[slice, slice]:
    left, top, right, bottom = (value * 64 for value in place)
    return slice(int(top), max(int(top) + 1, round(bottom))), slice(int(left), max(int(left) + 1, round(right)))
