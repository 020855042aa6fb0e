"""Captions beyond their language: personal data masked, repeated words, and how many others read almost the same."""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings, Decision

_EMAIL = re.compile(r"[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+")
# With a country code, or three groups as they are written in North America; years, sizes and dates have other shapes.
_PHONE = re.compile(r"(?<![\w.])(?:\+\d[\d\s().-]{6,16}\d|(?:1[\s.-])?\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4})(?!\w)")
HASHES, BANDS = 32, 8  # bands of four: captions that share 0.8 of their word pairs meet with a chance of 0.985
CROWD = 200
_PRIME = (1 << 31) - 1
_generator = np.random.default_rng(7)
_FACTORS, _SHIFTS = _generator.integers(1, _PRIME, HASHES), _generator.integers(0, _PRIME, HASHES)


def mask_personal(caption: str) -> str:
    """The caption with e-mail addresses and telephone numbers replaced by [email] and [phone]."""
    return _PHONE.sub("[phone]", _EMAIL.sub("[email]", caption))


def repetition(caption: str) -> float:
    """Share of the caption's word pairs that it has said before (after the filters of Gopher, arXiv 2112.11446)."""
    words = re.findall(r"\w+", caption.lower())
    said = Counter(pairwise(words))
    return round(1 - len(said) / said.total(), 4) if said else 0.0


def alike(captions: Iterable[str]) -> list[int]:
    """For each caption how many others share almost all of its word pairs: those that meet it in a band of MinHash.

    Holds about 400 bytes a distinct caption, no text.
    """
    numbers: dict[bytes, int] = {}  # of distinct texts, by their hash
    owners, signatures = array("i"), bytearray()
    for caption in captions:
        text = " ".join(re.findall(r"\w+", caption.lower()))
        number = numbers.setdefault(
            hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest(), len(numbers)
        )
        if len(signatures) == number * HASHES * 4:
            signatures += _minhash(text).astype(np.int32).tobytes()
        owners.append(number)
    places = np.frombuffer(owners, np.int32)
    distinct = len(numbers)
    numbers.clear()
    weight = np.bincount(places, minlength=distinct)
    counts = weight - 1
    bands = [
        _Band.of(part) for part in np.split(np.frombuffer(signatures, np.int32).reshape(-1, HASHES), BANDS, axis=1)
    ]
    for place in np.flatnonzero(np.any([band.sizes > 1 for band in bands], axis=0)).tolist():
        met = np.unique(np.concatenate([band.members(place) for band in bands]))
        counts[place] += weight[met[met != place]].sum()
    return [int(count) for count in counts[places]]


@dataclass(frozen=True)
class _Band:
    """Texts sorted by their part of the signature; for each text where its equals begin, and how many there are."""

    order: NDArray[np.int32]
    starts: NDArray[np.int32]
    sizes: NDArray[np.int32]

    @staticmethod
    def of(part: NDArray[np.int32]) -> "_Band":
        """Of all texts' parts [N 4]."""
        keys = np.ascontiguousarray(part).view(f"V{part.itemsize * part.shape[1]}").ravel()
        _, group, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        starts = np.cumsum(sizes) - sizes
        order = np.argsort(group, kind="stable").astype(np.int32)
        return _Band(order, starts[group].astype(np.int32), sizes[group].astype(np.int32))

    def members(self, number: int) -> NDArray[np.int32]:
        """The texts that are equal to one here; of a crowd the first: counting on costs its square."""
        start = self.starts[number]
        return self.order[start : start + min(self.sizes[number], CROWD)]


def _minhash(text: str) -> NDArray[np.int64]:
    """The smallest of each of 32 hashes over the word pairs."""
    words = text.split() or [""]
    pairs = {f"{a} {b}" for a, b in pairwise(words)} or {words[0]}
    values = np.array([int.from_bytes(pair.encode()[:64], "big") % _PRIME for pair in sorted(pairs)], np.int64)
    return np.asarray(((_FACTORS[:, None] * values[None] + _SHIFTS[:, None]) % _PRIME).min(axis=1), np.int64)


def judge_caption(caption: str, others: int, settings: CurateSettings) -> Decision:
    """Drop `caption_repeats` (the same again and again) and `caption_templated` (too many others read alike)."""
    repeated = repetition(caption)
    reason = None
    if repeated > settings.max_caption_repetition:
        reason = "caption_repeats"
    elif settings.max_alike_captions and others > settings.max_alike_captions:
        reason = "caption_templated"
    return _decision(reason, repeated, others)


@lru_cache(maxsize=10_000)
def _decision(reason: str | None, repeated: float, others: int) -> Decision:
    """Most captions repeat nothing and are like no other: a million of them share one object."""
    return Decision("captions", reason, {"repetition": repeated, "alike_captions": others})
