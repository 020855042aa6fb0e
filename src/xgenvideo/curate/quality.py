"""The steps that judge captions, pictures and safety: stored scores taken or made, then thresholds."""

import dataclasses
import threading
from functools import cache
from pathlib import Path

from xgenvideo.curate.captions import judge_caption, mask_personal
from xgenvideo.curate.inputs import Item
from xgenvideo.curate.picture import judge_picture
from xgenvideo.curate.safety import SafetyModel, judge_safety, read_blocked
from xgenvideo.curate.settings import Decision
from xgenvideo.curate.stages import Workplace, content_hash, in_threads


def judge_captions(items: list[Item], work: Workplace) -> None:
    """Personal data masked, then what is said again and again."""
    for item in items:
        if work.settings.mask_personal:
            caption = mask_personal(item.pair.caption)
            if caption != item.pair.caption:
                item.entry = dataclasses.replace(item.entry, pair=dataclasses.replace(item.pair, caption=caption))
        item.decisions.append(judge_caption(item.pair.caption, work.settings))


def judge_pictures(items: list[Item], work: Workplace) -> None:
    """By the scores that decoding left."""
    for item in items:
        item.decisions.append(judge_picture(item.facts["picture"], work.settings))


def judge_aesthetic_scores(items: list[Item], work: Workplace) -> None:
    """By the score that came with the listing."""
    for item in items:
        score, least = item.entry.scores.get("aesthetic"), work.settings.min_aesthetic_score
        reason = "no_score" if score is None else "unaesthetic" if score < least else None
        item.decisions.append(Decision("aesthetics", reason, {"aesthetic": score}))


def judge_watermark_models(items: list[Item], work: Workplace) -> None:
    """By the user's own watermark classifier."""
    for item, chance in zip(items, _classified(items, "watermark_model", work), strict=True):
        reason = "watermark_classified" if chance > work.settings.max_watermark_chance else None
        item.decisions.append(Decision("watermark_model", reason, {"watermark_chance": chance}))


def judge_aesthetic_models(items: list[Item], work: Workplace) -> None:
    """By the user's own judge of aesthetics."""
    for item, score in zip(items, _classified(items, "aesthetic_model", work), strict=True):
        reason = "unaesthetic" if score < work.settings.min_aesthetic_model_score else None
        item.decisions.append(Decision("aesthetic_model", reason, {"aesthetic": score}))


def _classified(items: list[Item], setting: str, work: Workplace) -> list[float]:
    """Scores of all items by the model that a setting names, the missing ones made."""
    settings, store = work.settings, work.classified[setting]
    missing = sorted({str(item.content) for item in items if str(item.content) not in store})
    if missing:
        from xgenvideo.curate.alignment import one_thread_each
        from xgenvideo.curate.classifier import PictureClassifier

        label = getattr(settings, setting.replace("_model", "_label"))
        with one_thread_each():
            model = PictureClassifier(Path(getattr(settings, setting)), label, setting)

            def score(content: str) -> float:
                return model.score(work.read_clip(content).frames(settings.classifier_frames))

            for content, value in work.tell(setting, in_threads(score, missing, settings), len(missing)):
                store.put(content, {"score": round(value, 4)})
    return [float(store[str(item.content)]["score"]) for item in items]


def judge_safeties(items: list[Item], work: Workplace) -> None:
    """The list of blocked files where there is one, and the classifier on a few frames."""
    settings = work.settings
    blocked = read_blocked(settings.blocked_hashes) if settings.blocked_hashes else frozenset[str]()
    models = threading.local()

    def score(content: str) -> float:
        if not hasattr(models, "model"):
            models.model = SafetyModel()
        return float(models.model.score(work.read_clip(content).frames(settings.safety_frames)))

    missing = sorted({str(item.content) for item in items if str(item.content) not in work.safety})
    for content, value in work.tell("safety", in_threads(score, missing, settings), len(missing)):
        work.safety.put(content, {"unsafe": round(value, 4)})

    @cache
    def hashed(path: Path, fetched: bool) -> str | None:
        return path.stem if fetched else content_hash(path)  # a fetched file may have been removed again

    for item in items:
        entry = item.entry
        file_hash = hashed(entry.path, entry.url is not None) if blocked and entry.path is not None else None
        unsafe = work.safety[str(item.content)]["unsafe"]
        item.decisions.append(judge_safety(file_hash, unsafe, blocked, settings))
