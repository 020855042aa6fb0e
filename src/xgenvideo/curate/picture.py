"""Black bars, exposure, blur and shaking, from sampled frames: cheap measures, each with a threshold that drops."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings, Decision

PROBED_FRAMES = 8
BAR_LEVEL = 20  # of 255: what a black bar stays under after encoding
BRIGHT_LEVEL = 250
SMALL = 64

Inner = tuple[int, int, int, int]


def _probed(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, len(frames) - 1, PROBED_FRAMES).round().astype(int))


def inner_frame(frames: NDArray[np.uint8]) -> Inner:
    """Left, top, right, bottom of the picture inside its black bars, in pixels; all of it where all is black."""
    brightest = cv2.cvtColor(frames[0], cv2.COLOR_RGB2GRAY)
    for place in _probed(frames):
        brightest = cv2.max(brightest, cv2.cvtColor(frames[place], cv2.COLOR_RGB2GRAY))
    rows, columns = (np.flatnonzero(brightest.max(axis=axis) > BAR_LEVEL) for axis in (1, 0))
    if not len(rows):
        return 0, 0, brightest.shape[1], brightest.shape[0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def without_bars(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames [F H W 3] cut to what their black bars enclose, at least 16 pixels a side."""
    left, top, right, bottom = inner_frame(frames)
    if min(right - left, bottom - top) < 16:
        return frames
    return np.ascontiguousarray(frames[:, top:bottom, left:right])


def measure_picture(frames: NDArray[np.uint8]) -> dict[str, float]:
    """Scores of frames [F H W 3] RGB.

    `bars`: share of the frame that is black bars. `light`: the brightness that a twentieth of the pixels exceed
    (0-255). `glare`: share of pixels that are white. `sharpness`: variance of the Laplacian of the sharpest frame
    (Pech-Pacheco and others, ICPR 2000), levels squared. `shake`: mean change of the camera's step from one frame to
    the next, over the frame's side: a steady pan has none.
    """
    height, width = frames.shape[1:3]
    left, top, right, bottom = inner_frame(frames)
    grey = [cv2.cvtColor(frames[place][top:bottom, left:right], cv2.COLOR_RGB2GRAY) for place in _probed(frames)]
    small = [cv2.resize(picture, (SMALL, SMALL), interpolation=cv2.INTER_AREA) for picture in grey]
    scores = {
        "bars": 1 - (right - left) * (bottom - top) / (width * height),
        "light": float(np.median([np.percentile(picture, 95) for picture in small])),
        "glare": float(np.median([(picture >= BRIGHT_LEVEL).mean() for picture in small])),
        "sharpness": max(float(cv2.meanStdDev(cv2.Laplacian(picture, cv2.CV_16S))[1].item()) ** 2 for picture in grey),
        "shake": _shake(frames),
    }
    return {name: round(value, 4) for name, value in scores.items()}


def _shake(frames: NDArray[np.uint8]) -> float:
    if len(frames) < 4:
        return 0.0
    small = [
        cv2.cvtColor(cv2.resize(f, (SMALL, SMALL), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY) for f in frames
    ]
    window = cv2.createHanningWindow((SMALL, SMALL), cv2.CV_32F)
    floats = [picture.astype(np.float32) for picture in small]
    steps = np.array([cv2.phaseCorrelate(a, b, window)[0] for a, b in zip(floats, floats[1:], strict=False)])
    return float(np.median(np.linalg.norm(np.diff(steps, axis=0), axis=1)) / SMALL)


def judge_picture(scores: dict[str, Any], settings: CurateSettings) -> Decision:
    """Drop `black_bars`, `too_dark`, `too_bright`, `blurred` and `shaky`."""
    reason = None
    if scores["bars"] > settings.max_bars:
        reason = "black_bars"
    elif scores["light"] < settings.min_light:
        reason = "too_dark"
    elif scores["glare"] > settings.max_glare:
        reason = "too_bright"
    elif scores["sharpness"] < settings.min_sharpness:
        reason = "blurred"
    elif scores["shake"] > settings.max_shake:
        reason = "shaky"
    return Decision("picture", reason, scores)
