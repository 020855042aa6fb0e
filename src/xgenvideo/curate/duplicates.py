"""Near duplicates: the same pictures in the same order, also after a crop, another size, another encoding or speed. A
clip and its reversed or reordered twin, or one whose events lie closer together, are not duplicates.

Candidates come from signatures of what a clip looks like on the whole and of what moves in it (`neighbours.py`), so the
cost does not grow with the square of the clips. Every candidate is verified moment by moment, under the crop
that fits best; the worst moments decide, because a twin differs for a part of the time only. What then passes is looked
at closely where the frames are at hand (`close_look.py`): thumbnails do not tell shapes apart.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.clips import Clip
from xgenvideo.curate.close_look import Film, look_closely
from xgenvideo.curate.neighbours import (
    KINDS,
    LENGTH_SECONDS,
    LENGTH_SHARE,
    WORD,
    WORDS,
    Planes,
    find_neighbours,
)
from xgenvideo.curate.settings import CurateSettings

GRID = 16
MOMENTS = 32  # at most, spread over the clip
LOOK_WORDS = 3  # of signs of the look under each window, by which most candidates go without their files being read
READ = 1024  # fingerprints held while candidates are verified, 60 KB each
FILMS = 64  # films held while candidates are looked at closely, 0.8 MB each at most
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


SKETCH = np.dtype(
    [
        ("signature", "<u8", (KINDS * WORDS,)),  # by which candidates are found
        ("windows", "<u8", (len(WINDOWS), LOOK_WORDS)),  # the signs of the looks under each window
        ("steadiness", "<f8"),
    ]
)
Records = np.ndarray[Any, np.dtype[np.void]]


@dataclass(frozen=True, repr=False)
class Sketches:
    """What candidates are found by: records [N] of SKETCH, maybe mapped from a file; seconds [N]; ranks [N 2]."""

    records: Records
    seconds: NDArray[np.float64]
    ranks: NDArray[np.int64]

    @staticmethod
    def of(prints: Collection[Fingerprint]) -> "Sketches":
        """Of fingerprints that are at hand."""
        records = np.frombuffer(b"".join(map(sketch, prints)), SKETCH)
        ranks = np.array([seen.rank for seen in prints], np.int64).reshape(-1, 2)
        return Sketches(records, np.array([seen.seconds for seen in prints]), ranks)

    def may_look_alike(self, one: int, two: int) -> bool:
        """Whether the mean pictures may pass MIN_LOOK, by their signs: five deviations of these are allowed for."""
        first, second = self.records[one], self.records[two]
        forth = np.bitwise_count(first["windows"] ^ second["windows"][0]).sum(axis=1)
        back = np.bitwise_count(second["windows"] ^ first["windows"][0]).sum(axis=1)
        bits = LOOK_WORDS * WORD
        apart = math.acos(MIN_LOOK * min(first["steadiness"], second["steadiness"])) / math.pi
        return bool(min(forth.min(), back.min()) <= bits * apart + 5 * math.sqrt(bits * apart * (1 - apart)))


def sketch(seen: Fingerprint) -> bytes:
    """The bytes of one record of SKETCH."""
    moves, looks = _planes()
    signs = looks.sign(seen.looks)
    record = np.zeros((), SKETCH)
    record["signature"] = np.concatenate([moves.sign(seen.moves[None])[0], signs[0]])
    record["windows"], record["steadiness"] = signs[:, :LOOK_WORDS], seen.steadiness
    return record.tobytes()


@cache
def _planes() -> tuple[Planes, Planes]:
    """Of what moves, and of looks."""
    return Planes.of(12 * 6 * 6 * 3, seed=1), Planes.of(GRID * GRID * 3, seed=2)


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
    if abs(one.seconds - two.seconds) > LENGTH_SHARE * max(one.seconds, two.seconds) + LENGTH_SECONDS:
        return 0.0
    swapped, window, look = _best_window(one, two)
    if look < MIN_LOOK * min(one.steadiness, two.steadiness):
        return 0.0
    if swapped:
        one, two = two, one
    return _verify(_window(one.thumbs.astype(np.float32), window), one, two)


def _best_window(one: Fingerprint, two: Fingerprint) -> tuple[bool, int, float]:
    """(whether `one` is the part of `two`, and not the reverse; the number of the window; the looks' correlation)."""
    forth, back = one.looks @ two.looks[0], two.looks @ one.looks[0]
    swapped = bool(back.max() > forth.max())
    best = back if swapped else forth
    return swapped, int(best.argmax()), float(best.max())


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


def find_duplicates(
    sketches: Sketches,
    read: Callable[[int], Fingerprint],
    settings: CurateSettings,
    read_clip: Callable[[int], Clip] | None = None,
) -> dict[int, tuple[int, float]]:
    """For each clip to drop: the clip kept in its place, and how alike they are. Clips are named by their places.

    `read` is asked for the fingerprints of clips that look alike, which may be read from files; `read_clip`, where
    there is one, for the frames of the few whose fingerprints are alike, which are then looked at closely.
    """
    order = np.lexsort((sketches.ranks[:, 1], sketches.ranks[:, 0]))
    near = find_neighbours(sketches.records["signature"][order], sketches.seconds[order])
    best: dict[int, tuple[int, float]] = {}
    read = lru_cache(READ)(read)

    @lru_cache(FILMS)
    def film(place: int) -> Film:
        assert read_clip is not None, "no frames to look at"
        return Film.of(read_clip(place), read(place).seconds)

    def same_closely(later: int, kept: int) -> bool:
        swapped, window, _ = _best_window(read(later), read(kept))
        first, second = (kept, later) if swapped else (later, kept)
        return look_closely(film(first), film(second), WINDOWS[window])

    for number in np.flatnonzero(near[:, 0] >= 0).tolist():
        later = int(order[number])
        earlier = order[near[number][near[number] >= 0]].tolist()
        # A neighbour that was dropped stands for the clip kept in its place, so that a crowd keeps one.
        stay = {best.get(place, (place,))[0] for place in earlier}
        for kept in sorted(stay, key=lambda place: tuple(sketches.ranks[place])):
            alike = likeness(read(later), read(kept)) if sketches.may_look_alike(later, kept) else 0.0
            if alike >= settings.min_duplicate_likeness and (read_clip is None or same_closely(later, kept)):
                best[later] = (kept, round(alike, 4))
                break
    return best
