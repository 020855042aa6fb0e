"""Captions beyond their language: personal data masked, repeated words, and how many others read almost the same."""

import hashlib
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings, Decision

_EMAIL = re.compile(r"[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+")
# With a country code, or three groups as they are written in North America; years, sizes and dates have other shapes.
_PHONE = re.compile(r"(?<![\w.])(?:\+\d[\d\s().-]{6,16}\d|(?:1[\s.-])?\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4})(?!\w)")
HASHES, BANDS = 32, 8  # bands of four: captions that share 0.8 of their word pairs meet with a chance of 0.985
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


class Crowds:
    """How many captions read almost like each of many: those that meet it in a band of MinHash.

    On disk 64 bytes a caption, in memory 32 while they are counted.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._count = 0

    def add(self, caption: str) -> None:
        """The next caption."""
        text = " ".join(re.findall(r"\w+", caption.lower()))
        bands = _minhash(text).astype("<u4").reshape(BANDS, -1)
        self._file.write(b"".join(hashlib.blake2b(band.tobytes(), digest_size=8).digest() for band in bands))
        self._count += 1

    def others(self) -> NDArray[np.int64]:
        """For each caption [N], of its bands the one that the most others share: how many do. The file is removed."""
        self._file.close()
        most = np.zeros(self._count, np.int64)
        if self._count:
            keys = np.memmap(self._path, "<u8", "r", shape=(self._count, BANDS))
            for band in range(BANDS):
                np.maximum(most, _shared(np.array(keys[:, band])), out=most)
            del keys
        self._path.unlink()
        return most


def _shared(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each key [N] how many others are equal to it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sizes = np.diff(begins, append=len(keys))
    counts = np.empty(len(keys), np.int64)
    counts[order] = np.repeat(sizes - 1, sizes)
    return counts


def _minhash(text: str) -> NDArray[np.int64]:
    """The smallest of each of 32 hashes over the word pairs."""
    words = text.split() or [""]
    pairs = {f"{a} {b}" for a, b in pairwise(words)} or {words[0]}
    values = np.array([int.from_bytes(pair.encode()[:64], "big") % _PRIME for pair in sorted(pairs)], np.int64)
    return np.asarray(((_FACTORS[:, None] * values[None] + _SHIFTS[:, None]) % _PRIME).min(axis=1), np.int64)


def judge_caption(caption: str, settings: CurateSettings) -> Decision:
    """Drop `caption_repeats`: it says the same again and again."""
    repeated = repetition(caption)
    reason = "caption_repeats" if repeated > settings.max_caption_repetition else None
    return Decision("captions", reason, {"repetition": repeated})


def judge_template(others: int, settings: CurateSettings) -> Decision:
    """Drop `caption_templated`: too many others read almost alike."""
    reason = "caption_templated" if settings.max_alike_captions and others > settings.max_alike_captions else None
    return Decision("templates", reason, {"alike_captions": others})
