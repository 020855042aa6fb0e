"""Retrieval, choices, intervals and CIDEr against computations done another way."""

import math

import numpy as np
import pytest

from xgenvideo.errors import DataError
from xgenvideo.evaluate.cider import cider, words
from xgenvideo.evaluate.metrics import bootstrap, choose, dual_softmax, retrieval

CANDIDATES = ["a red circle moves left", "the blue star", "a a a a green square", "", "One, two; three four five!"]
REFERENCES = [
    ["a red circle moves right"],
    ["a blue star appears then vanishes", "the blue star"],
    ["a green square stops"],
    ["a ring"],
    ["one two three four five six"],
]


def test_retrieval_is_what_sorting_by_hand_gives() -> None:
    random = np.random.default_rng(0)
    scores = random.standard_normal((30, 30)).astype(np.float32)
    groups = np.arange(30) % 25
    found = retrieval(scores, groups)
    by_hand = []
    for query in range(30):
        order = sorted(range(30), key=lambda item: -scores[query, item])
        wrong_before = 0
        for item in order:
            if groups[item] == groups[query]:
                break
            wrong_before += 1
        by_hand.append(1 + wrong_before)
    assert found.ranks.tolist() == by_hand
    assert found.recall(5) == np.mean(np.array(by_hand) <= 5)
    assert found.median_rank == np.median(by_hand)
    assert found.chance_r1 == pytest.approx((20 * 1 + 10 * 2) / 30 / 30)


def test_collapsed_embeddings_retrieve_nothing() -> None:
    found = retrieval(np.ones((10, 10), dtype=np.float32), np.arange(10))
    assert found.ranks.tolist() == [10] * 10


def test_retrieval_refuses_what_is_not_finite_or_not_square() -> None:
    with pytest.raises(DataError, match="finite"):
        retrieval(np.full((2, 2), np.nan, dtype=np.float32), np.arange(2))
    with pytest.raises(DataError, match="2 queries and 2 items"):
        retrieval(np.zeros((2, 3), dtype=np.float32), np.arange(2))


def test_choices_and_ties() -> None:
    assert choose([-1.0, -2.0], 0) == 1.0
    assert choose([-1.0, -2.0], 1) == 0.0
    assert choose([-1.0, -1.0, -1.0, -9.0], 2) == pytest.approx(1 / 3)
    with pytest.raises(DataError):
        choose([math.nan, 0.0], 0)


def test_the_interval_is_that_of_the_clusters() -> None:
    """40 clusters of 10 equal values are 40 observations, not 400: the normal approximation with n = 40 fits."""
    random = np.random.default_rng(1)
    by_cluster = random.integers(0, 2, 40)
    values = np.repeat(by_cluster, 10).astype(float).tolist()
    clusters = np.repeat([f"c{i}" for i in range(40)], 10).tolist()
    found = bootstrap(values, clusters)
    mean = float(by_cluster.mean())
    half = 1.96 * math.sqrt(mean * (1 - mean) / 40)
    assert found.count == 400
    assert found.mean == pytest.approx(mean)
    assert found.low == pytest.approx(mean - half, abs=0.03)
    assert found.high == pytest.approx(mean + half, abs=0.03)
    assert bootstrap(values, clusters) == found


def independent_cider(candidate: str, references: list[str], pool: list[list[str]]) -> float:
    """The formula of the paper with CIDEr-D's clipping and Gaussian, in dense vectors over all n-grams."""

    def grams(text: str, n: int) -> list[str]:
        tokens = text.lower().replace(",", "").replace(";", "").replace("!", "").split()
        return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    total = 0.0
    for reference in references:
        for n in (1, 2, 3, 4):
            vocabulary = sorted(set(grams(candidate, n)) | set(grams(reference, n)))
            idf = [
                math.log(len(pool) / max(1, sum(any(gram in grams(text, n) for text in texts) for texts in pool)))
                for gram in vocabulary
            ]
            own = np.array([grams(candidate, n).count(gram) for gram in vocabulary]) * idf
            other = np.array([grams(reference, n).count(gram) for gram in vocabulary]) * idf
            norm = np.linalg.norm(own) * np.linalg.norm(other)
            cosine = float(np.minimum(own, other) @ other / norm) if norm > 0 else 0.0
            delta = len(grams(candidate, 2)) - len(grams(reference, 2))
            total += cosine * math.exp(-(delta**2) / 72) / 4
    return 10 * total / len(references)


def test_cider_is_the_formula() -> None:
    expected = [
        independent_cider(text, several, REFERENCES) for text, several in zip(CANDIDATES, REFERENCES, strict=True)
    ]
    assert cider(CANDIDATES, REFERENCES) == pytest.approx(expected)
    assert max(expected) > 5
    assert expected[3] == 0


def test_cider_agrees_with_coco_caption() -> None:
    scorer = pytest.importorskip("pycocoevalcap.cider.cider_scorer").CiderScorer()
    for text, several in zip(CANDIDATES, REFERENCES, strict=True):
        scorer += (" ".join(words(text)), [" ".join(words(one)) for one in several])
    assert cider(CANDIDATES, REFERENCES) == pytest.approx(scorer.compute_score()[1])


def test_cider_refuses_lists_that_do_not_match() -> None:
    with pytest.raises(DataError):
        cider(["a"], [])


def test_dual_softmax_by_loops() -> None:
    scores = np.random.default_rng(3).uniform(-1, 1, (6, 4))
    for query in range(6):
        for item in range(4):
            share = math.exp(20 * scores[query, item]) / sum(math.exp(20 * scores[other, item]) for other in range(6))
            assert dual_softmax(scores, 20)[query, item] == pytest.approx(scores[query, item] * share)


def test_several_texts_of_one_video() -> None:
    """Text to video: each text has one right video. Video to text: the best of its texts counts."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    owners = np.array([0, 0, 1])
    assert retrieval(scores, owners, np.arange(2)).ranks.tolist() == [1, 2, 1]
    back = retrieval(scores.T, np.arange(2), owners)
    assert back.ranks.tolist() == [1, 2]
    assert back.chance_r1 == pytest.approx((2 / 3 + 1 / 3) / 2)
    with pytest.raises(DataError, match="no right answer"):
        retrieval(scores, np.array([0, 5, 1]), np.arange(2))
