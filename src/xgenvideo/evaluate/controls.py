"""The controls: what a model may see of a clip when its order, its other frames or all of it is taken away."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.data.dataset import Row

FULL = "full"
# `no_video` needs no frames at all; these three change them.
FRAME_CONTROLS = ("one_frame", "shuffled", "reversed")
CONTROLS = ("no_video", *FRAME_CONTROLS)


@dataclass(frozen=True, repr=False)
class Clip:
    """One clip's encoded frames. features [F P W], pts [F] seconds, ascending."""

    row: Row
    features: Tensor
    pts: Tensor

    def __repr__(self) -> str:
        return f"Clip({self.row.key}, features={list(self.features.shape)})"


def pair_name(row: Row) -> str:
    """The same name for both clips of a twin pair; the key of a clip without a twin."""
    return min(row.key, row.twin) if row.twin else row.key


def changed(clip: Clip, control: str, seed: int) -> Clip:
    """The clip as a control shows it; see `arranged`. `shuffled` as in `shuffle`."""
    if control == FULL:
        return clip
    order = shuffle(clip, seed) if control == "shuffled" else None
    return Clip(clip.row, *arranged(clip.features, clip.pts, control, order))


def arranged(
    features: Tensor, pts: Tensor, control: str, order: NDArray[np.int64] | None = None
) -> tuple[Tensor, Tensor]:
    """Features [F P W] and pts [F] as a control shows them; timestamps stay in ascending order. `full` changes nothing.

    one_frame: the middle frame at its own time. reversed: the frames backwards, at the times of the original.
    shuffled: the frames numbered by `order` [F], at the times of the original.
    """
    if control == "one_frame":
        middle = slice(len(pts) // 2, len(pts) // 2 + 1)
        return features[middle], pts[middle]
    if control == "shuffled":
        assert order is not None, "shuffled needs an order"
        return features[torch.from_numpy(order)], pts
    if control == "reversed":
        return features.flip(0), pts
    assert control == FULL, f"no control {control!r}, only {CONTROLS}"
    return features, pts


def seeded(name: str, seed: int) -> np.random.Generator:
    """A generator of a name's own, the same on every machine."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}\n{name}".encode()).digest()[:16], "big"))


def shuffle(clip: Clip, seed: int) -> NDArray[np.int64]:
    """Frame numbers [F] in a random order that both clips of a twin pair share, picture for picture.

    The frames are first sorted by what they show (a random projection of their features), which forgets the order they
    came in, then permuted by a generator seeded with the pair's name. Twins hold the same frames in two orders, so they
    come out nearly the same sequence: whatever order survives by luck is as wrong for one twin as it is right for the
    other, and the control is at chance for every permutation and not only on average.
    """
    random = seeded(pair_name(clip.row), seed)
    features = clip.features.flatten(1).double().cpu().numpy()
    direction = random.standard_normal(features.shape[1])
    by_picture: NDArray[np.int64] = np.argsort(features @ direction, kind="stable")
    return by_picture[random.permutation(len(features))]


def padded(clips: list[Clip]) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B F P W], pts [B F], frame_mask [B F] of several clips, the short ones followed by masked zeros."""
    longest = max(len(clip.pts) for clip in clips)
    features = clips[0].features.new_zeros((len(clips), longest, *clips[0].features.shape[1:]))
    pts = clips[0].pts.new_zeros((len(clips), longest))
    mask = torch.zeros((len(clips), longest), dtype=torch.bool, device=features.device)
    for i, clip in enumerate(clips):
        count = len(clip.pts)
        features[i, :count], pts[i, :count], mask[i, :count] = clip.features, clip.pts, True
    return features, pts, mask
