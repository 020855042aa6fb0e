"""The order of curation's steps: cheap ones first, each sees only what is still kept."""

from collections.abc import Callable, Iterable

from xgenvideo.curate import across, stages
from xgenvideo.curate.fetched import download
from xgenvideo.curate.inputs import Inputs, Item
from xgenvideo.curate.meaning import judge_alignments
from xgenvideo.curate.quality import (
    judge_aesthetic_models,
    judge_aesthetic_scores,
    judge_captions,
    judge_pictures,
    judge_safeties,
    judge_watermark_models,
)
from xgenvideo.curate.stages import Workplace

Step = tuple[str, Callable[[list[Item], Workplace], None]]

# By the records alone.
OF_RECORDS: tuple[Step, ...] = (
    ("language", stages.judge_languages),
    ("captions", judge_captions),
    ("aesthetics", judge_aesthetic_scores),
)
# Each input by itself: decoders and models, and what they find.
OF_CLIPS: tuple[Step, ...] = (
    ("download", download),
    ("decode", stages.decode),
    ("motion", stages.judge_motions),
    ("picture", judge_pictures),
    ("text_overlay", stages.judge_texts),
    ("watermark_model", judge_watermark_models),
    ("aesthetic_model", judge_aesthetic_models),
    ("safety", judge_safeties),
    ("alignment", judge_alignments),
)
# Inputs against one another.
OF_ALL: tuple[tuple[str, Callable[[Inputs, Workplace], None]], ...] = (
    ("templates", across.judge_templates),
    ("duplicates", across.judge_duplicates),
    ("balance", across.judge_balance),
)
FUNNEL = ("read", "select", "shots", *(name for name, _ in OF_RECORDS + OF_CLIPS + OF_ALL))


def judge(
    items: list[Item], work: Workplace, steps: Iterable[Step], begin: Callable[[str], None] = lambda step: None
) -> None:
    """Run those of the steps that are on; `begin(step)` is called before each."""
    for name, step in steps:
        if work.settings.runs(name):
            begin(name)
            with work.timed(name):
                step([item for item in items if item.kept], work)


def judge_all(inputs: Inputs, work: Workplace) -> None:
    """Run those of the steps over all inputs that are on."""
    for name, step in OF_ALL:
        if work.settings.runs(name):
            with work.timed(name):
                step(inputs, work)
