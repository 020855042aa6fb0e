"""Stills and joined clips, from sampled frames: how much a clip changes, and whether it changes all at once."""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings, Decision

GRID = 16
CHANGED_LEVELS = 14.0  # of 255: over codec noise, under the step between two different grounds


def measure_motion(frames: NDArray[np.uint8]) -> dict[str, Any]:
    """Scores of frames [F H W 3] RGB: `change`, the largest of any block against the median frame (0-255), and cuts.

    `cut` is the share of the picture that changes for good at the worst boundary, `cut_ratio` that change over the
    median one: an object that appears changes little of the picture, a moving camera changes it at every boundary.
    """
    blocks = np.stack([cv2.resize(f, (GRID, GRID), interpolation=cv2.INTER_AREA) for f in frames]).astype(np.float32)
    median = np.median(blocks, axis=0)
    change = float(np.abs(blocks - median).max(axis=(1, 2, 3)).max())
    cut, ratio, place = _worst_cut(blocks)
    alike = _likeness(blocks[place - 1], blocks[place]) if place else 1.0
    scores = {"change": change, "cut": cut, "cut_ratio": ratio, "cut_likeness": alike}
    return {name: round(value, 4) for name, value in scores.items()} | {"cut_frame": place}


def _worst_cut(blocks: NDArray[np.float32]) -> tuple[float, float, int]:
    if len(blocks) < 4:
        return 0.0, 0.0, 0
    steps = np.array([_changed(a, b) for a, b in zip(blocks, blocks[1:], strict=False)])
    lasting = np.array(
        [
            _changed(np.median(blocks[max(0, k - 3) : k], 0), np.median(blocks[k : k + 3], 0))
            for k in range(1, len(blocks))
        ]
    )
    cuts = np.minimum(steps, lasting)
    place = int(cuts.argmax())
    others = np.delete(steps, place)
    return float(cuts[place]), float(cuts[place] / max(0.02, float(np.median(others)))), place + 1


def _likeness(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Correlation of two pictures' brightness: high across a change of exposure or a nudge of the camera."""
    one, two = (picture.mean(axis=-1) - picture.mean() for picture in (before, after))
    return float((one * two).sum() / max(1e-6, float(np.linalg.norm(one) * np.linalg.norm(two))))


def _changed(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Share of blocks that differ."""
    return float((np.abs(before - after).max(axis=-1) > CHANGED_LEVELS).mean())


def judge_motion(scores: dict[str, Any], settings: CurateSettings) -> Decision:
    """Drop stills (`still`) and clips with a hard cut inside (`joined`)."""
    reason = None
    if scores["change"] < settings.min_change:
        reason = "still"
    elif scores["cut"] >= settings.cut_change and scores["cut_ratio"] >= settings.cut_ratio:
        whole = scores["cut"] >= settings.whole_cut_change and scores["cut_ratio"] >= settings.whole_cut_ratio
        if whole or scores["cut_likeness"] <= settings.max_cut_likeness:
            reason = "joined"
    return Decision("motion", reason, scores)
