"""A close look at two clips that thumbnails of 16 x 16 pixels take for the same: scenes with another shape or colour on
the same path pass there, and so do grounds that differ by a faint texture.

Only what the thumbnails accept is looked at: the stored frames, 64 x 64 pixels, laid on one another under a crop and a
gain that are fitted to them (Gauss-Newton with robust weights). Copies differ at edges, at noise and where something
moves between the moments that were sampled; so every block may shift, what edges explain is taken off, and moments
taken at the same time count most. The worst blocks decide, as the thing that is another covers a small part only.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.clips import Clip, decode_jpeg

SIDE = 64
BLUR, SHARP_SIDE = 0.6, 170  # pixels: smaller copies have no finer detail; of clips stored smaller than this still less
SMALL_SIDE = 128
BLOCK, STRIDE, SHIFT = 16, 8, 6  # pixels: about as large as a thing; moved 0.25 s at a third of the frame a second
MOMENTS = 16  # looked at, spread over the clip
LEAST = 6  # at least so many, those nearest to a moment of the other clip first
NEAR_SECONDS = 0.3  # sampling at 2 FPS shows a moment up to a quarter second off
SAME_SECONDS = 0.02  # nearer moments are the same
LAG_SECONDS = 0.05  # a moment so far off counts for 1 / e
UNFORESEEN = 15.0  # a second of lag: share of the change between moments, after shifts, that a lag explains
EDGE = 0.4  # square pixels times the energy of the gradient: what edges may differ by
LEVELS = 30.0  # square levels of a block's energy that are noise
TEXTURE = 0.1  # share of a block's variance that counts beside what moves in it
# Most that the three worst blocks may differ by, as shares of their energy, and least that the grounds without their
# shading may be alike. Where both clips show the same moments, 99 % of copies of 88 real and 160 generated clips (as in
# bench/duplicates.py) have less than 0.03 and all over 0.92; of scenes with a thing of another shape or colour all but
# one of 208 have over 0.03. At another speed what moved between the moments leaves up to 0.36 and 0.41.
MOST_APART, MOST_APART_SMALL, MOST_APART_LAGGING = 0.03, 0.05, 0.4
MIN_GROUND, MIN_GROUND_LAGGING = 0.85, 0.4

Grey = NDArray[np.float32]
Pictures = NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Film:
    """pictures [F 64 64 3] uint8 at times [F] seconds, of a clip of `seconds` stored with this short side in pixels."""

    pictures: NDArray[np.uint8]
    times: NDArray[np.float64]
    seconds: float
    side: int

    @staticmethod
    def of(clip: Clip, seconds: float) -> "Film":
        """Of a clip's stored frames. Raises DataError for what is no picture."""
        frames = [decode_jpeg(jpeg) for jpeg in clip.jpegs]
        return Film(np.stack([shrink(frame) for frame in frames]), clip.pts, seconds, min(frames[0].shape[:2]))

    def smooth(self, place: int, side: int) -> Pictures:
        """A picture [64 64 3] without the detail that copies of this short side lack."""
        blur = BLUR * max(1.0, SHARP_SIDE / side)
        return np.asarray(cv2.GaussianBlur(self.pictures[place].astype(np.float32), (0, 0), blur), np.float32)


@dataclass(frozen=True)
class Moment:
    """A place in one clip, the near places in the other, nearest first, and the lag to the nearest in seconds."""

    place: int
    others: tuple[int, ...]
    lag: float

    @property
    def weight(self) -> float:
        """How much it counts."""
        return float(np.exp(-((self.lag / LAG_SECONDS) ** 2)))


def shrink(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A frame [H W 3] squeezed to [64 64 3]."""
    return np.asarray(cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def look_closely(one: Film, two: Film, window: tuple[float, float, float]) -> bool:
    """Whether `two` shows the same as `one` under a window near the given: left, top and side, as fractions.

    The whole picture is tried beside it: what moves can mislead the thumbnails' choice.
    """
    moments = _moments(one, two)
    lagging = max(moment.lag for moment in moments) >= SAME_SECONDS
    most = MOST_APART_SMALL if min(one.side, two.side) < SMALL_SIDE else MOST_APART
    most, least = (MOST_APART_LAGGING, MIN_GROUND_LAGGING) if lagging else (most, MIN_GROUND)
    for start in dict.fromkeys((window, (0.0, 0.0, 1.0))):
        apart, ground = compare(one, two, start, moments)
        if apart <= most and ground >= least:
            return True
    return False


def _moments(one: Film, two: Film) -> list[Moment]:
    """Moments of `two` with those of `one`. Times are compared as shares of the whole length."""
    longest = max(one.seconds, two.seconds)
    lags = np.abs(two.times[:, None] / two.seconds - one.times[None] / one.seconds) * longest
    nearest = lags.min(axis=1)
    most = max(SAME_SECONDS, float(np.sort(nearest)[min(LEAST, len(nearest)) - 1]))
    good = np.flatnonzero(nearest <= most)
    places = good[np.unique(np.linspace(0, len(good) - 1, MOMENTS).round().astype(int))]
    made = []
    for place in places.tolist():
        order = np.argsort(lags[place], kind="stable")[:3].tolist()
        others = tuple(other for other in order if other == order[0] or lags[place, other] <= NEAR_SECONDS)
        made.append(Moment(place, others, float(nearest[place])))
    return made


def compare(
    one: Film, two: Film, window: tuple[float, float, float], moments: list[Moment] | None = None
) -> tuple[float, float]:
    """(how far the worst blocks are apart, 0 for copies; how alike the grounds are, 1 for copies)."""
    moments = _moments(one, two) if moments is None else moments
    side = min(one.side, two.side)
    seen = np.stack([two.smooth(moment.place, side) for moment in moments])
    pictures = {place: one.smooth(place, side) for place in {other for moment in moments for other in moment.others}}
    nearest = np.stack([pictures[moment.others[0]] for moment in moments])
    weights = np.array([moment.weight for moment in moments])
    warp, gain = _align(nearest.mean(axis=-1), seen.mean(axis=-1), weights, window)
    laid = {place: _lay(picture, warp) * np.float32(gain) for place, picture in pictures.items()}
    shift = np.median(seen - np.stack([laid[moment.others[0]] for moment in moments]))
    laid = {place: picture + np.float32(shift) for place, picture in laid.items()}
    grounds = np.median(np.stack(list(laid.values())), axis=0), np.median(seen, axis=0)
    return _worst_blocks(laid, seen, grounds, moments), _alike_grounds(*grounds)


def _lay(picture: Grey, warp: NDArray[np.float64]) -> Grey:
    """A picture [64 64] or [64 64 3] as the other clip may show it."""
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(picture, warp, (SIDE, SIDE), flags=how, borderMode=cv2.BORDER_REPLICATE), np.float32
    )


def _align(
    first: Grey, second: Grey, weights: NDArray[np.float64], window: tuple[float, float, float]
) -> tuple[NDArray[np.float64], float]:
    """The scaling and shift [2 3] that lay first [M 64 64] on second [M 64 64], and the gain, from a window on."""
    left, top, side = window
    middle = (SIDE - 1) / 2  # scales and shifts are kept apart by measuring from the middle
    half = SIDE / 2
    # Scales of the two axes times half the side, and shifts of the middle: all four in pixels.
    start = np.array([side * half, side * half, (left + side / 2 - 0.5) * SIDE, (top + side / 2 - 0.5) * SIDE])
    place, gain = start.copy(), min(1.4, max(0.7, float(second.std()) / max(1e-3, float(first.std()))))
    # A window is known to 2.5 % of the side; grounds without detail hold nothing against that.
    stiff = np.append((20 / 0.025 / np.array([half, half, SIDE, SIDE])) ** 2, [16, 4]) * weights.sum()
    u = ((np.arange(SIDE, dtype=np.float32) - middle) / half)[None, None]
    warp = np.zeros((2, 3))
    level = None
    for _ in range(6):
        scales = place[:2] / half
        warp[[0, 1], [0, 1]], warp[:, 2] = scales, place[2:] + middle * (1 - scales)
        laid = np.stack([_lay(picture, warp) for picture in first])
        level = float(np.median(second - gain * laid)) if level is None else level
        rest = second - gain * laid - level
        across, down = gain * np.gradient(laid, axis=2), gain * np.gradient(laid, axis=1)
        slopes = np.stack(
            [across * u, down * u.swapaxes(1, 2), across, down, (laid - laid.mean()) / 50, np.ones_like(laid)], axis=-1
        ).reshape(-1, 6)
        trust = (weights[:, None, None] / (1 + (rest / 15) ** 2)).reshape(-1, 1)
        pull = (slopes * trust).T @ rest.ravel() - stiff * np.append(place - start, [0, 0])
        step = np.linalg.solve((slopes * trust).T @ slopes + np.diag(stiff), pull)
        place += step[:4]
        change = float(step[4]) / 50
        gain, level = min(1.6, max(0.6, gain + change)), level + float(step[5]) - change * float(laid.mean())
    return warp, gain


def _worst_blocks(
    laid: dict[int, Pictures], seen: Pictures, grounds: tuple[Pictures, Pictures], moments: list[Moment]
) -> float:
    """Mean of the three blocks of [64 64 3] that differ most, over all moments, as shares of their energy."""
    count = len(range(0, SIDE - BLOCK + 1, STRIDE))
    apart, energy = np.zeros((count, count)), np.zeros((count, count))
    for moment, picture in zip(moments, seen, strict=True):
        others = [laid[place] for place in moment.others]
        moving = [_blocks((other - grounds[0]) ** 2) for other in others]
        moves = 0.5 * (_blocks((picture - grounds[1]) ** 2) + np.mean(moving, axis=0))
        edges = np.minimum(_blocks(_steepness(picture)), _blocks(_steepness(others[0])))
        variances = _variances(picture)
        for row, column in np.argwhere(moves >= LEVELS).tolist():
            differs = _differs(picture, others, row * STRIDE, column * STRIDE, moment.lag)
            apart[row, column] += moment.weight * max(0.0, differs - EDGE * edges[row, column])
            energy[row, column] += moment.weight * (moves[row, column] + TEXTURE * variances[row, column])
    shares = apart / (energy + LEVELS * max(1.0, sum(moment.weight for moment in moments)))
    return float(np.sort(shares, axis=None)[-3:].mean())


def _blocks(values: Pictures, channels: int = 1) -> Pictures:
    """Means [N N] or [N N 3] of values [64 64 3] over all blocks."""
    means = cv2.blur(values if channels == 3 else values.mean(axis=-1), (BLOCK, BLOCK), anchor=(0, 0))
    return np.asarray(means, np.float32)[: SIDE - BLOCK + 1 : STRIDE, : SIDE - BLOCK + 1 : STRIDE]


def _variances(picture: Pictures) -> Pictures:
    """Variance within each block [N N] of [64 64 3]."""
    return np.asarray(np.maximum(0, _blocks(picture**2, 3) - _blocks(picture, 3) ** 2).mean(axis=-1), np.float32)


def _steepness(picture: Pictures) -> Pictures:
    """Square gradient of [64 64 3], per axis."""
    return np.asarray((np.gradient(picture, axis=0) ** 2 + np.gradient(picture, axis=1) ** 2) / 2, np.float32)


def _differs(picture: Pictures, others: list[Pictures], top: int, left: int, lag: float) -> float:
    """Mean square difference of a block from the best place near it in the best of the other clip's near moments.

    Off by what a lag explains: how badly those moments foresee each other.
    """
    found = [_best_place(other, picture, top, left) for other in others]
    best = int(np.argmin(found))
    if lag < SAME_SECONDS or len(others) == 1:
        return found[best]
    unforeseen = _best_place(others[0 if best else 1], others[best], top, left)
    return max(0.0, found[best] - min(1.5, UNFORESEEN * lag) * unforeseen)


def _best_place(picture: Pictures, other: Pictures, top: int, left: int) -> float:
    """Least mean square difference of a block of `other` from places in `picture` [64 64 3] near its own."""
    near = picture[max(0, top - SHIFT) : top + BLOCK + SHIFT, max(0, left - SHIFT) : left + BLOCK + SHIFT]
    block = np.ascontiguousarray(other[top : top + BLOCK, left : left + BLOCK])
    return max(0.0, float(cv2.matchTemplate(near, block, cv2.TM_SQDIFF).min())) / block.size


def _alike_grounds(one: Pictures, two: Pictures) -> float:
    """Up to 1: how alike the grounds [64 64 3] are, without their shading and their borders."""
    down, across = np.mgrid[0:SIDE, 0:SIDE].reshape(2, -1) / SIDE - 0.5
    shades = np.stack([np.ones_like(down), across, down, across**2, across * down, down**2], axis=-1)
    rests = []
    for ground in (one, two):
        flat = ground.reshape(-1, 3)
        rest = (flat - shades @ np.linalg.lstsq(shades, flat, rcond=None)[0]).reshape(ground.shape)[4:-4, 4:-4]
        rests.append(rest - rest.mean(axis=(0, 1)))
    spread = sum(float((rest**2).mean()) for rest in rests) + 2  # a level of each is noise
    return 1 - float(((rests[0] - rests[1]) ** 2).mean()) / spread
