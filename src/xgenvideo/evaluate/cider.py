"""CIDEr-D of captions (Vedantam et al. 2015, arXiv 1411.5726), as coco-caption computes it but without Java.

The maintained packages pull in matplotlib (pycocotools) or a JVM for the tokenizer; this is the same arithmetic, and a
test compares the two. Words are lower-cased runs of letters and digits instead of the Penn Treebank tokenizer's.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xgenvideo.errors import DataError

ORDERS = 4
SIGMA = 6.0
Ngram = tuple[str, ...]


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation, of any alphabet."""
    return re.findall(r"\w+(?:'\w+)*", text.lower())


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """CIDEr-D of each candidate against its references, [N], on the scale 0 to 10; the corpus score is the mean.

    Inverse document frequencies come from the references given, so scores of different pools are not comparable, and a
    pool of one clip scores 0. Raises DataError if there are not as many candidates as references, or an empty list.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise DataError(f"{len(candidates)} captions, {len(references)} lists of references: need one list each")
    counted = [[_ngrams(reference) for reference in several] for several in references]
    frequency = Counter(ngram for several in counted for ngram in set().union(*several))
    log_clips = math.log(len(candidates))
    weights = {ngram: log_clips - math.log(count) for ngram, count in frequency.items()}
    return np.array(
        [
            10 * np.mean([_similarity(_ngrams(text), other, weights, log_clips) for other in several])
            for text, several in zip(candidates, counted, strict=True)
        ]
    )


def _ngrams(text: str) -> Counter[Ngram]:
    """How often each run of 1 to 4 words occurs."""
    tokens = words(text)
    return Counter(
        tuple(tokens[i : i + order]) for order in range(1, ORDERS + 1) for i in range(len(tokens) - order + 1)
    )


def _similarity(
    candidate: Counter[Ngram], reference: Counter[Ngram], weights: dict[Ngram, float], unseen: float
) -> float:
    """Mean over n of the clipped TF-IDF cosine, times a Gaussian of the difference in length."""
    dots, own, other = (np.zeros(ORDERS) for _ in range(3))
    for ngram, count in candidate.items():
        weight, order = weights.get(ngram, unseen), len(ngram) - 1
        own[order] += (count * weight) ** 2
        # Clipping: a word repeated more often than in the reference earns nothing for it.
        dots[order] += min(count, reference[ngram]) * reference[ngram] * weight**2
    for ngram, count in reference.items():
        other[len(ngram) - 1] += (count * weights[ngram]) ** 2
    norms = np.sqrt(own * other)
    cosines = np.divide(dots, norms, out=np.zeros(ORDERS), where=norms > 0)
    # coco-caption counts the length in pairs of words; the difference is the same as in words but for texts under two.
    delta = _pairs(candidate) - _pairs(reference)
    return float(cosines.mean() * math.exp(-(delta**2) / (2 * SIGMA**2)))


def _pairs(ngrams: Counter[Ngram]) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)
