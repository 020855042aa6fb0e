"""Retrieval ranks, accuracies with chance, and bootstrap intervals: pure numpy, no model here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xgenvideo.errors import DataError

RESAMPLES = 2000
RECALL_AT = (1, 5, 10)


@dataclass(frozen=True, repr=False)
class Retrieval:
    """One direction over N queries. ranks [N] of the best right answer, from 1; `chance_r1`: R@1 of a random order."""

    ranks: NDArray[np.int64]
    chance_r1: float

    def recall(self, k: int) -> float:
        """Share of queries that have a right answer among the first `k`."""
        return float((self.ranks <= k).mean())

    @property
    def median_rank(self) -> float:
        """Median rank of the best right answer."""
        return float(np.median(self.ranks))

    def __repr__(self) -> str:
        return f"Retrieval(queries={len(self.ranks)}, r1={self.recall(1):.3f}, median_rank={self.median_rank})"


def retrieval(
    scores: NDArray[np.floating], groups: NDArray[np.int64], items: NDArray[np.int64] | None = None
) -> Retrieval:
    """Scores [N M], a row a query; items of the query's group are all right answers.

    `groups` [N] is the group of each query, `items` [M] that of each item (default: the same). A wrong answer with the
    same score as the best right one counts as before it, so that a model whose embeddings have collapsed to one point
    gets nothing. Raises DataError for an empty or non-finite matrix, and for a query without a right answer.
    """
    items = groups if items is None else items
    if scores.shape != (len(groups), len(items)) or not scores.size:
        raise DataError(f"retrieval scores are {scores.shape} for {len(groups)} queries and {len(items)} items")
    if not np.isfinite(scores).all():
        raise DataError("retrieval scores are not finite; the model's embeddings hold NaN or infinity")
    right = groups[:, None] == items[None, :]
    if not right.any(axis=1).all():
        raise DataError(f"{int((~right.any(axis=1)).sum())} retrieval queries have no right answer among the items")
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    ranks = 1 + ((scores >= best) & ~right).sum(axis=1)
    return Retrieval(ranks.astype(np.int64), float(right.mean(axis=1).mean()))


def dual_softmax(scores: NDArray[np.floating], scale: float) -> NDArray[np.float64]:
    """Scores [N M], a row a query, times their softmax over all queries (DSL: CAMoE, arXiv 2109.04290, section 3.3).

    `scale` is the inverse temperature of the softmax. It looks at the whole test set's queries to answer one, which a
    search engine cannot do; it is never to be compared with raw scores.
    """
    logits = scale * scores.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=0, keepdims=True))
    found: NDArray[np.float64] = scores * weights / weights.sum(axis=0, keepdims=True)
    return found


def choose(scores: Sequence[float], answer: int) -> float:
    """1 if the answer alone has the highest score, 0 if another has; ties share the point, so that they are chance."""
    values = np.asarray(scores, dtype=np.float64)
    if not 0 <= answer < len(values) or not np.isfinite(values).all():
        raise DataError(
            f"option scores {list(scores)} with answer {answer}: must be finite, and the answer one of them"
        )
    winners = np.flatnonzero(values == values.max())
    return float(answer in winners) / len(winners)


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` observations, with its bootstrap 95 % interval."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Estimate:
    """Mean of `values` and its 95 % percentile interval, resampling whole clusters (Efron 1979).

    Questions about one clip and the two clips of a twin pair are not independent: they share a cluster, so that the
    interval does not look narrower than it is. Raises DataError for no values.
    """
    if not values or len(values) != len(clusters):
        raise DataError(f"bootstrap of {len(values)} values in {len(clusters)} clusters: give as many as there are")
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    numbers = np.array([names[name] for name in clusters])
    sums = np.bincount(numbers, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(numbers).astype(np.float64)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES)
    means = (draws @ sums) / (draws @ counts)
    low, high = np.percentile(means, (2.5, 97.5))
    return Estimate(float(np.mean(values)), float(low), float(high), len(values))
