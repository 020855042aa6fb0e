"""The times that speak for a text: which windows of a video, each seen alone, make it likelier than no video at all."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from xgenvideo.data.text import Document, caption_document, question_document
from xgenvideo.infer.generate import caption_prompt, generate, question_ids
from xgenvideo.infer.likelihood import log_likelihoods
from xgenvideo.infer.release import NEW_TOKENS, Release

CITED = 3


@dataclass(frozen=True)
class Cited:
    """A span of a video in seconds; `nats` is how much likelier the text is with it alone than without any video."""

    start: float
    end: float
    nats: float


@dataclass(frozen=True)
class CitedAnswer:
    """A text and the spans that speak for it, the strongest first; none where no window makes it likelier."""

    text: str
    times: tuple[Cited, ...]


def answer_with_times(
    release: Release, video: Path, question: str = "", max_new_tokens: int = NEW_TOKENS, most: int = CITED
) -> CitedAnswer:
    """The likeliest answer (a caption for an empty question) and at most `most` windows that speak for it.

    The video is read once. What is cited is measured on the finished text, not said by the model: a span is as long as
    a window of the release. Raises MediaError for a video that cannot be read.
    """
    watched = release.watch(video)
    ids = question_ids(question, release.tokenizer) if question.strip() else caption_prompt()
    written = generate(release.model, release.tokenizer, watched.together, [ids], max_new_tokens)
    text = release.tokenizer.decode(written[0]).strip()
    return CitedAnswer(text, cite(release, watched.latents, watched.spans, question, text, most))


def cite(
    release: Release,
    latents: Tensor,
    spans: tuple[tuple[float, float], ...],
    question: str,
    text: str,
    most: int = CITED,
) -> tuple[Cited, ...]:
    """Spans that speak for `text` as the answer, none of which overlap; latents [W Q Dr] of windows or moments, their
    spans in seconds.
    """
    document = _document(release, question, text)
    alone = log_likelihoods(release.model, [document] * len(spans), latents, range(len(spans)))
    blind = log_likelihoods(release.model, [document], None, [0])[0]
    found: list[Cited] = []
    for (start, end), value in sorted(zip(spans, alone, strict=True), key=lambda one: -one[1]):
        if value > blind and len(found) < most and not any(one.start < end and start < one.end for one in found):
            found.append(Cited(start, end, value - blind))
    return tuple(found)


def _document(release: Release, question: str, text: str) -> Document:
    if question.strip():
        return question_document(question, text, release.tokenizer)
    return caption_document(text, release.tokenizer, release.config.data.text_tokens)
