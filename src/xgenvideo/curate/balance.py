"""Balance by concept: of what captions say often a share is kept, of what they say rarely all (MetaCLIP, arXiv
2309.16671). Off unless `curate.max_per_concept` is set.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from xgenvideo.curate.settings import Decision
from xgenvideo.errors import DataError

Concepts = frozenset[str]


def read_concepts(path: str) -> Concepts:
    """Phrases, one a line, in lower case; empty and # lines are passed over. Raises DataError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"curate.concepts = {path}: cannot be read ({error}); give a text file, a phrase a line"
        ) from error
    found = frozenset(filter(None, (" ".join(_words(line)) for line in lines if not line.startswith("#"))))
    if not found:
        raise DataError(f"curate.concepts = {path}: names no concept; write a word or phrase on each line")
    return found


def concepts_of(caption: str, known: Concepts | None) -> set[str]:
    """The known phrases that a caption says; where none are given every word is a concept."""
    words = _words(caption)
    if known is None:
        return set(words)
    longest = max(phrase.count(" ") for phrase in known) + 1
    said = (" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1))
    return set(known.intersection(said))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def count_concepts(captions: Iterable[str], known: Concepts | None) -> Counter[str]:
    """How many captions say each concept."""
    return Counter(concept for caption in captions for concept in concepts_of(caption, known))


def judge_concepts(key: str, caption: str, counts: Counter[str], most: int, known: Concepts | None) -> Decision:
    """Drop `common_concept`, and `no_concept` where a caption says none of the known ones.

    A concept that `count` captions say draws each of them with the chance `most / count`; a caption is kept when one of
    its concepts draws it. Draws depend on key and concept alone, so that a pair's fate does not hang on the order.
    """
    said = sorted(concepts_of(caption, known), key=lambda concept: (counts[concept], concept))
    if not said:
        return Decision("balance", "no_concept")
    drawn = any(_draw(key, concept) * counts[concept] < most for concept in said)
    scores = {"rarest_concept": said[0], "captions_with_it": counts[said[0]]}
    return Decision("balance", None if drawn else "common_concept", scores)


def _draw(key: str, concept: str) -> float:
    """A number in [0, 1) that is always the same for the two."""
    digest = hashlib.blake2b(f"{key}\n{concept}".encode("utf-8", "backslashreplace"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
