"""Captions beyond their language: personal data masked, repeated words, and how many others read almost the same."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings, Decision

_EMAIL = re.compile(r"[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+")
# With a country code, or three groups as they are written in North America; years, sizes and dates have other shapes.
_PHONE = re.compile(r"(?<![\w.])(?:\+\d[\d\s().-]{6,16}\d|(?:1[\s.-])?\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4})(?!\w)")
HASHES, BANDS = 32, 8  # bands of four: captions that share 0.8 of their word pairs meet with a chance of 0.985
_PRIME = (1 << 31) - 1


def mask_personal(caption: str) -> str:
    """The caption with e-mail addresses and telephone numbers replaced by [email] and [phone]."""
    return _PHONE.sub("[phone]", _EMAIL.sub("[email]", caption))


def repetition(caption: str) -> float:
    """Share of the caption's word pairs that it has said before (after the filters of Gopher, arXiv 2112.11446)."""
    words = re.findall(r"\w+", caption.lower())
    said = Counter(pairwise(words))
    return round(1 - len(said) / said.total(), 4) if said else 0.0


def alike(captions: Sequence[str]) -> list[int]:
    """For each caption how many others share almost all of its word pairs: those that meet it in a band of MinHash."""
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    distinct: dict[str, list[int]] = defaultdict(list)
    for number, caption in enumerate(captions):
        distinct[" ".join(re.findall(r"\w+", caption.lower()))].append(number)
    texts = list(distinct)
    for number, text in enumerate(texts):
        signature = _minhash(text)
        for band, part in enumerate(np.split(signature, BANDS)):
            buckets[band, part.tobytes()].append(number)
    weight = [len(distinct[text]) for text in texts]
    met: list[set[int]] = [set() for _ in texts]
    for members in buckets.values():
        if len(members) > 1:
            for number in members:
                met[number].update(members[:200])  # a crowd is a crowd: counting on costs its square
    counts = [0] * len(captions)
    for number, text in enumerate(texts):
        others = sum(weight[other] for other in met[number] if other != number) + weight[number] - 1
        for place in distinct[text]:
            counts[place] = others
    return counts


def _minhash(text: str) -> NDArray[np.int64]:
    """The smallest of each of 32 hashes over the word pairs."""
    words = text.split() or [""]
    pairs = {f"{a} {b}" for a, b in pairwise(words)} or {words[0]}
    values = np.array([int.from_bytes(pair.encode()[:64], "big") % _PRIME for pair in sorted(pairs)], np.int64)
    generator = np.random.default_rng(7)
    factors, shifts = generator.integers(1, _PRIME, HASHES), generator.integers(0, _PRIME, HASHES)
    return np.asarray(((factors[:, None] * values[None] + shifts[:, None]) % _PRIME).min(axis=1), np.int64)


def judge_caption(caption: str, others: int, settings: CurateSettings) -> Decision:
    """Drop `caption_repeats` (the same again and again) and `caption_templated` (too many others read alike)."""
    repeated = repetition(caption)
    reason = None
    if repeated > settings.max_caption_repetition:
        reason = "caption_repeats"
    elif settings.max_alike_captions and others > settings.max_alike_captions:
        reason = "caption_templated"
    return Decision("captions", reason, {"repetition": repeated, "alike_captions": others})
