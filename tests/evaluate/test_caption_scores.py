"""BLEU, ROUGE-L and METEOR: against coco-caption's own scorers, and against a count by hand."""

import math
import shutil

import pytest

from xgenvideo.evaluate.caption_scores import bleu, caption_scores, meteor, rouge_l
from xgenvideo.evaluate.cider import words

CANDIDATES = ["a red circle moves left", "the blue star", "a a a a green square", "", "One, two; three four five!"]
REFERENCES = [
    ["a red circle moves right"],
    ["a blue star appears then vanishes", "the blue star"],
    ["a green square stops", "a square that is green and large stops here"],
    ["a ring"],
    ["one two three four five six"],
]


def test_bleu_agrees_with_coco_caption() -> None:
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer").BleuScorer(n=4)
    for text, several in zip(CANDIDATES, REFERENCES, strict=True):
        scorer += (" ".join(words(text)), [" ".join(words(one)) for one in several])
    assert bleu(CANDIDATES, REFERENCES) == pytest.approx(scorer.compute_score(option="closest", verbose=0)[0])


def test_bleu_by_hand() -> None:
    """Two captions: 4 of 5 and 3 of 3 words, 3 of 4 and 2 of 2 pairs; 8 words said, 8 in the nearest references."""
    found = bleu(CANDIDATES[:2], REFERENCES[:2])
    assert found[0] == pytest.approx(7 / 8)
    assert found[1] == pytest.approx(math.sqrt(7 / 8 * 5 / 6))
    short = bleu(["a red"], [["a red circle"]])
    assert short[0] == pytest.approx(math.exp(1 - 3 / 2))


def test_rouge_agrees_with_coco_caption() -> None:
    scorer = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge()
    said = [i for i, text in enumerate(CANDIDATES) if text]
    expected = [
        scorer.calc_score([" ".join(words(CANDIDATES[i]))], [" ".join(words(one)) for one in REFERENCES[i]])
        for i in said
    ]
    assert rouge_l(CANDIDATES, REFERENCES)[said] == pytest.approx(expected)


def test_rouge_by_trying_every_subsequence() -> None:
    for text, several in zip(CANDIDATES, REFERENCES, strict=True):
        precisions, recalls = [0.0], [0.0]
        for one in several:
            common = longest(words(text), words(one))
            precisions.append(common / max(1, len(words(text))))
            recalls.append(common / len(words(one)))
        p, r = max(precisions), max(recalls)
        expected = (1 + 1.44) * p * r / (r + 1.44 * p) if p and r else 0.0
        assert rouge_l([text], [several]) == pytest.approx([expected])


def longest(one: list[str], other: list[str]) -> int:
    best = 0
    for chosen in range(2 ** len(one)):
        part = [word for i, word in enumerate(one) if chosen >> i & 1]
        left = iter(other)
        if all(word in left for word in part):
            best = max(best, len(part))
    return best


def test_all_scores_together_and_why_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = caption_scores(CANDIDATES, REFERENCES)
    assert set(found) == {"cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor", "meteor_reason"}
    assert found["meteor"] is None
    assert "Java" in found["meteor_reason"]
    perfect = caption_scores(["a red ring moves", "two blue dots"], [["a red ring moves"], ["two blue dots"]])
    assert (perfect["bleu_3"], perfect["rouge_l"]) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program, and Java was not found")
def test_meteor_prefers_the_better_caption() -> None:
    pytest.importorskip("pycocoevalcap.meteor.meteor")
    """One reference, then two of which the second is the other's: the score of the nearer one counts."""
    text = "a red circle moves to the right"
    same, near, far = (meteor([said], [[text]]) for said in (text, "red circles moving right", "two dogs"))
    assert far < near < same
    assert same > 0.9
    assert meteor(["red circles moving right", text], [[text], ["two dogs", text]]) > near
