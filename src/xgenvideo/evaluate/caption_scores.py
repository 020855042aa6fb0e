"""BLEU-1 to 4, ROUGE-L and METEOR of captions, as coco-caption defines them; CIDEr-D is in `cider.py`.

BLEU and ROUGE-L are computed here on the words of `cider.words`; METEOR is a Java program and runs where both Java and
the package pycocoevalcap, which carries it, are found.
"""

import importlib.util
import math
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgenvideo.errors import DataError
from xgenvideo.evaluate.cider import cider, words

ORDERS = 4
ROUGE_BETA = 1.2
# coco-caption's, so that no division is by zero.
TINY, SMALL = 1e-15, 1e-9


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """All scores of candidates against their references, as JSON values; METEOR is None with the reason beside it."""
    found: dict[str, Any] = {"cider_d": float(cider(candidates, references).mean())}
    found |= {f"bleu_{order}": value for order, value in enumerate(bleu(candidates, references), start=1)}
    found["rouge_l"] = float(rouge_l(candidates, references).mean())
    reason = _no_meteor()
    found["meteor"] = None if reason else meteor(candidates, references)
    return found | ({"meteor_reason": reason} if reason else {})


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Corpus BLEU of orders 1 to 4 (Papineni et al. 2002), against the reference of the nearest length."""
    right, made = np.zeros(ORDERS), np.zeros(ORDERS)
    length = reference_length = 0
    for candidate, several in zip(candidates, references, strict=True):
        said, truths = words(candidate), [words(one) for one in several]
        length += len(said)
        reference_length += min((abs(len(one) - len(said)), len(one)) for one in truths)[1]
        for order in range(1, ORDERS + 1):
            most: Counter[tuple[str, ...]] = Counter()
            for truth in truths:
                most |= _ngrams(truth, order)
            counted = _ngrams(said, order)
            right[order - 1] += (counted & most).total()
            made[order - 1] += max(0, len(said) - order + 1)
    ratio = (length + TINY) / (reference_length + SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    logs = np.cumsum(np.log((right + TINY) / (made + SMALL))) / np.arange(1, ORDERS + 1)
    scores: list[float] = (brevity * np.exp(logs)).tolist()
    return scores


def _ngrams(said: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(said[at : at + order]) for at in range(len(said) - order + 1))


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """ROUGE-L of each candidate [N] (Lin 2004): best precision and best recall over its references, beta 1.2."""
    scores = []
    for candidate, several in zip(candidates, references, strict=True):
        said, truths = words(candidate), [words(one) for one in several]
        common = [_longest_common(said, truth) for truth in truths]
        precision = max(common) / max(1, len(said))
        recall = max(count / max(1, len(truth)) for count, truth in zip(common, truths, strict=True))
        both = recall + ROUGE_BETA**2 * precision
        scores.append((1 + ROUGE_BETA**2) * precision * recall / both if both else 0.0)
    return np.array(scores)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        ends = [same + 1 if word == theirs else 0 for same, theirs in zip(row, other, strict=False)]
        fresh = [0]
        for (_, above), end in zip(pairwise(row), ends, strict=True):
            fresh.append(max(above, fresh[-1], end))
        row = fresh
    return row[-1]


def _no_meteor() -> str:
    """Why METEOR cannot be computed here; empty where it can."""
    if shutil.which("java") is None:
        return "Java was not found"
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "the package pycocoevalcap was not found: pip install 'xgenvideo[meteor]'"
    return ""


def meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """METEOR 1.5 (Denkowski and Lavie 2014) by its authors' Java program. Raises DataError where it fails."""
    found = importlib.util.find_spec("pycocoevalcap")
    assert found is not None, "asked for without pycocoevalcap"
    assert found.submodule_search_locations, "pycocoevalcap is a package"
    jar = Path(found.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"
    most = max(map(len, references))
    with tempfile.TemporaryDirectory() as folder:
        said, truths = Path(folder) / "said", Path(folder) / "truths"
        said.write_text("".join(f"{' '.join(words(one))}\n" for one in candidates), encoding="utf-8")
        # The program wants as many references for each; one that is there twice changes no maximum.
        rows = (one for several in references for one in [*several, *[several[-1]] * (most - len(several))])
        truths.write_text("".join(f"{' '.join(words(one))}\n" for one in rows), encoding="utf-8")
        command = ["java", "-Xmx2G", "-jar", str(jar), str(said), str(truths), "-l", "en", "-norm", "-r", str(most)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    score = re.search(r"Final score:\s+([0-9.]+)", done.stdout)
    if score is None:
        raise DataError(f"METEOR gave no score: {(done.stderr or done.stdout)[-300:]}")
    return float(score[1])
