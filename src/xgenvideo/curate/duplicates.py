"""Near duplicates: the same pictures in the same order. A clip and its reversed or reordered twin are not duplicates.

What moves is compared, frame by frame, after the still ground is taken away: two clips on alike grounds with different
things, or with the same things in another order, have little in common then. Candidates come from hashes by random
planes (SimHash), so the cost does not grow with the square of the clips; every candidate is verified.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings

TIMES = 24  # moments compared, spread over the clip
GRID = 12
TABLES, BITS = 24, 12  # finds pairs of correlation 0.95 with a chance of 0.998
MAX_BUCKET = 200
STILL_LEVELS = 1.5


@dataclass(frozen=True, repr=False)
class Fingerprint:
    """moving [TIMES*GRID*GRID*3] of length 1 (zero for a still), ground [GRID*GRID*3] in levels; seconds; rank."""

    moving: NDArray[np.float32]
    ground: NDArray[np.float32]
    seconds: float
    rank: tuple[int, int]


def fingerprint(
    thumbs: NDArray[np.uint8], pts: NDArray[np.float64], seconds: float, rank: tuple[int, int]
) -> Fingerprint:
    """Of thumbs [F h w 3] at pts [F] seconds. `rank`: the smallest of a group of duplicates is kept."""
    moments = np.linspace(0, pts[-1], TIMES)
    places = np.abs(pts[None] - moments[:, None]).argmin(axis=1)
    small = np.stack([cv2.resize(t, (GRID, GRID), interpolation=cv2.INTER_AREA) for t in thumbs]).astype(np.float32)
    ground = np.median(small, axis=0)
    moving = (small - ground)[places]
    length = float(np.linalg.norm(moving))
    still = length / np.sqrt(moving.size) < STILL_LEVELS
    return Fingerprint(
        (moving * 0 if still else moving / length).ravel().astype(np.float32), ground.ravel(), seconds, rank
    )


def likeness(one: Fingerprint, two: Fingerprint) -> float:
    """-1..1: the smaller of how alike the movement and the ground are; 0 when the clips' lengths differ."""
    if abs(one.seconds - two.seconds) > 0.1 * max(one.seconds, two.seconds) + 0.25:
        return 0.0
    ground = _same_ground(one.ground, two.ground)
    if not one.moving.any() or not two.moving.any():
        return ground if one.moving.any() == two.moving.any() else 0.0
    return min(ground, float(one.moving @ two.moving))


def _same_ground(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    """1 for grounds that differ by gain and offset alone, falling to 0 at 24 levels of what is left (RMS)."""
    a, b = one - one.mean(), two - two.mean()
    gain = np.clip(float(a @ b) / max(1e-6, float(a @ a)), 0.7, 1.4)
    left = float(np.sqrt(np.mean((gain * a - b) ** 2)))
    offset = abs(float(one.mean() - two.mean()))
    return max(0.0, 1 - left / 24) if offset < 48 else 0.0


def find_duplicates(prints: dict[str, Fingerprint], settings: CurateSettings) -> dict[str, tuple[str, float]]:
    """For each clip to drop: the clip kept in its place, and how alike they are. The order of `prints` is no matter."""
    best: dict[str, tuple[str, float]] = {}
    order = sorted(prints, key=lambda name: prints[name].rank)
    place = {name: number for number, name in enumerate(order)}
    pairs = sorted((max(place[a], place[b]), min(place[a], place[b])) for a, b in _candidates(prints))
    for later, earlier in pairs:
        name, kept = order[later], order[earlier]
        if kept in best or name in best:
            continue
        alike = likeness(prints[name], prints[kept])
        if alike >= settings.min_duplicate_likeness:
            best[name] = (kept, round(alike, 4))
    return best


def _candidates(prints: dict[str, Fingerprint]) -> Iterator[tuple[str, str]]:
    """Pairs that share a bucket of any table."""
    names = list(prints)
    if not names:
        return
    planes = (
        np.random.default_rng(20240101).normal(size=(prints[names[0]].moving.size, TABLES * BITS)).astype(np.float32)
    )
    signs = np.stack([prints[name].moving @ planes > 0 for name in names]).reshape(len(names), TABLES, BITS)
    codes = signs @ (1 << np.arange(BITS))
    seen: set[tuple[str, str]] = set()
    for table in range(TABLES):
        buckets: dict[int, list[str]] = defaultdict(list)
        for name, code in zip(names, codes[:, table], strict=True):
            buckets[int(code)].append(name)
        for bucket in buckets.values():
            # A crowded bucket holds stills and near-stills; neighbours in length are compared, not all pairs.
            bucket.sort(key=lambda name: prints[name].seconds)
            for one, two in combinations(bucket, 2) if len(bucket) <= MAX_BUCKET else _neighbours(bucket):
                pair = (one, two) if one < two else (two, one)
                if pair not in seen:
                    seen.add(pair)
                    yield pair


def _neighbours(bucket: list[str]) -> Iterator[tuple[str, str]]:
    for step in range(1, 9):
        yield from zip(bucket, bucket[step:], strict=False)
