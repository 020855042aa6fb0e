"""The alignment step: which scorer speaks, its stored scores, and the judgement."""

import hashlib
import json

from xgenvideo.curate.colours import grounding
from xgenvideo.curate.inputs import Item
from xgenvideo.curate.stages import Workplace, in_threads


def judge_alignments(items: list[Item], work: Workplace) -> None:
    """Captions against pictures: by the publisher's score or a given model where the settings name one; else by the
    colours that a caption names, and by the offline models where colours leave it open.
    """
    from xgenvideo.curate.alignment import colours_decide, judge_alignment, judge_score

    settings = work.settings
    if settings.align_column:
        for item in items:
            item.decisions.append(judge_score(item.entry.scores.get(settings.align_column), settings))
        return
    if settings.align_model:
        _score_meanings(items, work)
        for item in items:
            item.decisions.append(judge_score(work.semantics[_pair_identity(item)]["semantic"], settings))
        return
    colours = [grounding(item.pair.caption, item.facts["colours"], settings.min_colour_share) for item in items]
    judged = list(zip(items, colours, strict=True))
    undecided = [item for item, found in judged if not colours_decide(found, settings)]
    _score_meanings(undecided, work)
    scored = {id(item): work.semantics[_pair_identity(item)]["semantic"] for item in undecided}
    for item, found in judged:
        item.decisions.append(judge_alignment(scored.get(id(item)), found, settings))


def _score_meanings(items: list[Item], work: Workplace) -> None:
    """Store the semantic score of every pair that has none yet."""
    missing = [item for item in items if _pair_identity(item) not in work.semantics]
    if not missing:
        return
    from xgenvideo.curate.alignment import AlignmentModels, one_thread_each
    from xgenvideo.curate.scorers import PairScorer, open_scorer

    settings = work.settings
    with one_thread_each():
        scorer: PairScorer = open_scorer(settings.align_model) if settings.align_model else AlignmentModels()
        captions = sorted({item.pair.caption for item in missing})
        embedded = dict(zip(captions, scorer.embed(captions), strict=True))

        def score(item: Item) -> float:
            seen = scorer.see_clip(work.read_clip(str(item.content)), settings.alignment_frames)
            return scorer.score(seen, embedded[item.pair.caption])

        for item, value in work.tell("alignment", in_threads(score, missing, settings), len(missing)):
            work.semantics.put(_pair_identity(item), {"semantic": round(value, 4)})


def _pair_identity(item: Item) -> str:
    return hashlib.sha256(json.dumps([item.content, item.pair.caption]).encode()).hexdigest()
