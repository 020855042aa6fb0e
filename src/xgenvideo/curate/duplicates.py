"""Near duplicates: the same pictures in the same order, also after a crop, another size, another encoding or speed. A
clip and its reversed or reordered twin, or one whose events lie closer together, are not duplicates.

Candidates come from hashes by random planes (SimHash) of what a clip looks like on the whole and of what moves in it,
so the cost does not grow with the square of the clips. Every candidate is verified moment by moment, under the crop
that fits best; the worst moments decide, because a twin differs for a part of the time only.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings

GRID = 16
MOMENTS = 32  # at most, spread over the clip
TABLES = 24
MOVES_BITS, LOOKS_BITS = 12, 9  # finds pairs of correlation 0.9 with a chance of 0.93 and 0.998
MAX_BUCKET = 200
STILL_LEVELS = 0.5  # of 255, over what encoding leaves in a picture of 16 x 16
# Windows of the picture that a copy may show: left, top and side, as fractions. A tenth cut off, from any sides.
WINDOWS = ((0.0, 0.0, 1.0), *((0.05 * x, 0.05 * y, 0.9) for x, y in product(range(3), range(3))))
# Correlation of the mean pictures under the best window. Where much changes from one frame to the next, the mean hangs
# on when they were taken: the least is multiplied by the share of the mean's variance that is the picture's own.
MIN_LOOK = 0.94
WORST = 0.15  # quantile of the moments that decides
NEAR_SECONDS = 0.3  # sampling at 2 FPS shows a moment up to a quarter second off
JITTER = 0.5  # share of the change to the neighbouring moments that is put down to that

Pictures = NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Fingerprint:
    """thumbs [M 16 16 3] uint8 at times [M] seconds; looks [10 768], the mean picture under each window, and moves
    [1296], of length 1 (zero for a still); steadiness, the share of the mean picture's variance that is its own;
    seconds; rank.
    """

    thumbs: NDArray[np.uint8]
    times: NDArray[np.float64]
    looks: Pictures
    moves: Pictures
    steadiness: float
    seconds: float
    rank: tuple[int, int]


def fingerprint(
    thumbs: NDArray[np.uint8], pts: NDArray[np.float64], seconds: float, rank: tuple[int, int]
) -> Fingerprint:
    """Of thumbs [F 16 16 3] at pts [F] seconds. `rank`: the smallest of a group of duplicates is kept."""
    places = np.unique(np.linspace(0, len(pts) - 1, MOMENTS).round().astype(int))
    kept = thumbs[places]
    mean = kept.astype(np.float32).mean(axis=0)
    looks = np.stack([_unit(_window(mean[None], number)) for number in range(len(WINDOWS))])
    steps = np.diff(kept.astype(np.float32), axis=0)
    shaky = 0.5 * float((steps**2).mean()) / len(kept) if len(kept) > 1 else 0.0
    steadiness = float(mean.var() / max(1e-6, mean.var() + shaky))
    return Fingerprint(kept, pts[places], looks, _moves(thumbs, pts), steadiness, seconds, rank)


def _unit(pictures: Pictures) -> Pictures:
    """As one vector without its mean, of length 1."""
    flat = (pictures - pictures.mean()).ravel()
    return np.asarray(flat / max(1e-6, float(np.linalg.norm(flat))), np.float32)


def _moves(thumbs: NDArray[np.uint8], pts: NDArray[np.float64]) -> Pictures:
    """What differs from the still ground at 12 moments, coarsely; zero for a still."""
    places = np.abs(pts[None] - np.linspace(0, pts[-1], 12)[:, None]).argmin(axis=1)
    small = np.stack([cv2.resize(thumb, (6, 6), interpolation=cv2.INTER_AREA) for thumb in thumbs]).astype(np.float32)
    moving = (small - np.median(small, axis=0))[places]
    length = float(np.linalg.norm(moving))
    still = length / np.sqrt(moving.size) < STILL_LEVELS
    return np.asarray((moving * 0 if still else moving / length).ravel(), np.float32)


def _window(pictures: Pictures, number: int) -> Pictures:
    """Pictures [M 16 16 3] as a copy cut to a window would show them."""
    left, top, side = WINDOWS[number]
    if side == 1:
        return pictures
    shift = (side - 1) / 2  # pixels' middles, not their corners, are scaled
    warp = np.array([[side, 0, left * GRID + shift], [0, side, top * GRID + shift]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = [cv2.warpAffine(p, warp, (GRID, GRID), flags=how, borderMode=cv2.BORDER_REPLICATE) for p in pictures]
    return np.stack(cut).astype(np.float32)


def likeness(one: Fingerprint, two: Fingerprint) -> float:
    """Up to 1: how alike the worst moments and the grounds are; 0 when the lengths or the mean pictures differ."""
    if abs(one.seconds - two.seconds) > 0.1 * max(one.seconds, two.seconds) + 0.25:
        return 0.0
    forth, back = one.looks @ two.looks[0], two.looks @ one.looks[0]
    if max(forth.max(), back.max()) < MIN_LOOK * min(one.steadiness, two.steadiness):
        return 0.0
    if back.max() > forth.max():
        one, two, forth = two, one, back
    return _verify(_window(one.thumbs.astype(np.float32), int(forth.argmax())), one, two)


def _verify(first: Pictures, one: Fingerprint, two: Fingerprint) -> float:
    """The likeness of `one`, whose pictures as `two` may show them are `first` [M 16 16 3]."""
    x, y = first.reshape(len(first), -1), two.thumbs.reshape(len(two.thumbs), -1).astype(np.float32)
    if abs(float(x.mean() - y.mean())) > 32:
        return 0.0
    gain = float(np.clip(y.std() / max(1e-3, float(x.std())), 0.7, 1.4))
    x, y = (x - x.mean()) * gain, y - y.mean()
    ground_x, ground_y = np.median(x, axis=0), np.median(y, axis=0)
    # 50: differences of 7 levels do not count on grounds that are flat.
    spread = float(np.mean(ground_x**2) + np.mean(ground_y**2)) + 50
    ground = 1 - float(np.mean((ground_x - ground_y) ** 2)) / spread
    moving_x, moving_y = x - ground_x, y - ground_y
    energy_x, energy_y = (moving_x**2).mean(axis=1), (moving_y**2).mean(axis=1)
    typical = 0.5 * float(energy_x.mean() + energy_y.mean())
    if typical < STILL_LEVELS**2:
        return ground
    # A moving camera has no ground to take away; both are tried.
    apart = np.minimum(_distances(moving_x, moving_y), _distances(x, y))
    apart -= JITTER * np.minimum(_changes(x)[:, None], _changes(y)[None])
    alike = 1 - np.maximum(0, apart) / (energy_x[:, None] + energy_y[None] + 0.3 * typical + STILL_LEVELS**2)
    return min(ground, _worst_moments(alike, one, two))


def _worst_moments(alike: Pictures, one: Fingerprint, two: Fingerprint) -> float:
    """A low quantile of how well each moment of either clip is met by its best near moment of the other.

    alike [M N]. Times are compared as shares of the whole length; what only one clip shows (a long clip's frames end
    early) is left out.
    """
    times_x, times_y = one.times / one.seconds, two.times / two.seconds
    near = NEAR_SECONDS / max(one.seconds, two.seconds)
    lag = np.abs(times_x[:, None] - times_y[None])
    worst = 1.0
    for table, gaps, own, other in ((alike, lag, times_x, times_y), (alike.T, lag.T, times_y, times_x)):
        nearest = gaps == gaps.min(axis=1, keepdims=True)
        best = np.where((gaps <= near) | nearest, table, -np.inf).max(axis=1)
        shown = best[own <= other[-1] + near]
        worst = min(worst, float(np.quantile(shown, WORST)))
    return worst


def _distances(x: Pictures, y: Pictures) -> Pictures:
    """Mean square differences [M N] of the rows of x [M D] and y [N D]."""
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None] - 2 * x @ y.T
    return np.asarray(np.maximum(0, squares) / x.shape[1], np.float32)


def _changes(x: Pictures) -> Pictures:
    """Mean square change [M] to the moments before and after."""
    if len(x) < 2:
        return np.zeros(len(x), np.float32)
    steps = ((x[1:] - x[:-1]) ** 2).mean(axis=1)
    return np.asarray((np.append(steps[:1], steps) + np.append(steps, steps[-1:])) / 2, np.float32)


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
    """Pairs that share a bucket of any table, by what moves or by what the whole looks like."""
    names = list(prints)
    seen: set[tuple[str, str]] = set()
    if not names:
        return
    moves, looks = np.stack([prints[n].moves for n in names]), np.stack([prints[n].looks[0] for n in names])
    for vectors, bits in ((moves, MOVES_BITS), (looks, LOOKS_BITS)):
        for codes in _hashes(vectors, bits):
            buckets: dict[int, list[str]] = defaultdict(list)
            for name, code in zip(names, codes, strict=True):
                buckets[int(code)].append(name)
            for bucket in buckets.values():
                # A crowded bucket holds stills or plain grounds; neighbours in length are compared, not all pairs.
                bucket.sort(key=lambda name: prints[name].seconds)
                for one, two in combinations(bucket, 2) if len(bucket) <= MAX_BUCKET else _neighbours(bucket):
                    pair = (one, two) if one < two else (two, one)
                    if pair not in seen:
                        seen.add(pair)
                        yield pair


def _hashes(vectors: Pictures, bits: int) -> NDArray[np.int64]:
    """[TABLES N]: for each table the bucket of each vector [N D]."""
    planes = np.random.default_rng(20240101).normal(size=(vectors.shape[1], TABLES * bits)).astype(np.float32)
    signs = (vectors @ planes > 0).reshape(len(vectors), TABLES, bits)
    return np.asarray((signs @ (1 << np.arange(bits))).T, np.int64)


def _neighbours(bucket: list[str]) -> Iterator[tuple[str, str]]:
    for step in range(1, 9):
        yield from zip(bucket, bucket[step:], strict=False)
