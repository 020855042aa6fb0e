"""What is measured on a few clips at a time: each clip is encoded once, the controls rearrange its encoded frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import Dataset, Row
from xgenvideo.data.examples import read_example
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.text import PackedText, caption_document, caption_group, pack
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import MediaError
from xgenvideo.evaluate.controls import CONTROLS, FRAME_CONTROLS, FULL, Clip, changed, padded, pair_name
from xgenvideo.evaluate.metrics import choose
from xgenvideo.infer.generate import caption_prompt, generate
from xgenvideo.infer.likelihood import log_likelihoods, option_documents
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.objectives import next_token_loss

CLIPS_AT_ONCE = 16
CAPTION_TOKENS = 64
CONDITIONS = (FULL, *CONTROLS)


@dataclass(frozen=True)
class Point:
    """One choice between options: `value` is 1, 0 or a share of a tie; `cluster` is what it is not independent of."""

    cluster: str
    kind: str
    value: float
    chance: float


@dataclass
class Tally:
    """What has been measured so far. `questions` and `twins` are by condition; lists run over clips in their order."""

    rows: list[Row] = field(default_factory=list)
    skipped: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    video: list[Tensor] = field(default_factory=list)
    text: list[Tensor] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    questions: dict[str, list[Point]] = field(default_factory=lambda: {name: [] for name in CONDITIONS})
    twins: dict[str, list[Point]] = field(default_factory=lambda: {name: [] for name in CONDITIONS})


@dataclass(frozen=True)
class Subject:
    """Who is measured on what."""

    model: VideoLM
    tokenizer: Tokenizer
    config: RunConfig
    dataset: Dataset
    cache: FeatureCache | None
    seed: int


@torch.inference_mode()
def measure(subject: Subject, rows: Sequence[Row]) -> Tally:
    """Everything but the figures that need the whole pool, for each readable clip of `rows`."""
    tally = Tally()
    partners = twin_captions(rows)
    for clips in _chunks(subject, rows, tally):
        for condition in CONDITIONS:
            latents = _latents(subject, clips, condition)
            tally.questions[condition] += _answer(subject, clips, latents)
            tally.twins[condition] += _tell_twins_apart(subject, clips, latents, partners)
            if condition == FULL:
                assert latents is not None, "only no_video has no latents"
                _read(subject, clips, latents, tally)
        tally.rows += [clip.row for clip in clips]
    return tally


def twin_captions(rows: Sequence[Row]) -> dict[str, str]:
    """The twin's caption by key, for clips whose twin is among `rows` too and is described by another text."""
    by_key = {row.key: row for row in rows}
    found = {}
    for row in rows:
        twin = by_key.get(row.twin or "")
        if twin and twin.twin == row.key and caption_group(twin.caption) != caption_group(row.caption):
            found[row.key] = twin.caption
    return found


def _chunks(subject: Subject, rows: Sequence[Row], tally: Tally) -> Iterator[list[Clip]]:
    """Encoded clips, a few at a time; a clip whose frames are no pictures is counted and left out."""
    clips: list[Clip] = []
    for row in rows:
        try:
            clips.append(_encode(subject, row))
        except MediaError:
            tally.skipped += 1
            continue
        if len(clips) == CLIPS_AT_ONCE:
            yield clips
            clips = []
    if clips:
        yield clips


def _encode(subject: Subject, row: Row) -> Clip:
    device = subject.model.logit_scale.device
    text = pack(row, subject.tokenizer, subject.config.data.text_tokens)
    example = read_example(subject.dataset, row, text, subject.config, subject.cache)
    if example.features is not None:
        return Clip(row, example.features.to(device), example.pts.to(device))
    assert example.frames is not None, "an example has features or frames"
    return Clip(row, subject.model.encode_frames(example.frames.to(device)), example.pts.to(device))


def _latents(subject: Subject, clips: list[Clip], condition: str) -> Tensor | None:
    """Latents [B Q Dr] of the clips under a condition, None for no video."""
    if condition not in (FULL, *FRAME_CONTROLS):
        return None
    shown = padded([changed(clip, condition, subject.seed) for clip in clips])
    return subject.model.latents(*shown)


def _answer(subject: Subject, clips: list[Clip], latents: Tensor | None) -> list[Point]:
    """One point a question: is the right option the likeliest?"""
    asked = [(i, question) for i, clip in enumerate(clips) for question in clip.row.questions]
    documents, videos = [], []
    for i, question in asked:
        documents += option_documents(question.text, question.options, subject.tokenizer)
        videos += [i] * len(question.options)
    scores = iter(log_likelihoods(subject.model, documents, latents, videos))
    points = []
    for i, question in asked:
        count = len(question.options)
        value = choose([next(scores) for _ in range(count)], question.answer)
        points.append(Point(pair_name(clips[i].row), question.kind, value, 1 / count))
    return points


def _tell_twins_apart(
    subject: Subject, clips: list[Clip], latents: Tensor | None, partners: dict[str, str]
) -> list[Point]:
    """One point a clip with a twin: is its own caption likelier than the twin's, given this clip?"""
    documents, videos = [], []
    chosen = [i for i, clip in enumerate(clips) if clip.row.key in partners]
    for i in chosen:
        row = clips[i].row
        for caption in (row.caption, partners[row.key]):
            documents.append(caption_document(caption, subject.tokenizer, subject.config.data.text_tokens))
            videos.append(i)
    scores = log_likelihoods(subject.model, documents, latents, videos)
    pairs = zip(chosen, scores[::2], scores[1::2], strict=True)
    return [Point(pair_name(clips[i].row), "twin", choose([own, other], 0), 0.5) for i, own, other in pairs]


def _read(subject: Subject, clips: list[Clip], latents: Tensor, tally: Tally) -> None:
    """Add loss, both embeddings and a greedy caption of each clip."""
    model, tokenizer = subject.model, subject.tokenizer
    texts = [pack(clip.row, tokenizer, subject.config.data.text_tokens) for clip in clips]
    tokens, positions, documents, targets, sees = (
        _stack(texts, name, latents.device) for name in ("tokens", "positions", "documents", "targets", "sees_video")
    )
    ends = torch.tensor([text.caption_end for text in texts], device=latents.device)
    logits, embedded = model(tokens, positions, documents, ends, latents, sees)
    total, count = next_token_loss(logits, targets)
    tally.loss_sum += float(total)
    tally.loss_tokens += int(count)
    tally.text += list(embedded.float().cpu())
    tally.video += list(model.video_embedding(latents).float().cpu())
    longest = min(CAPTION_TOKENS, subject.config.data.text_tokens - 3)
    written = generate(model, tokenizer, latents, [caption_prompt()] * len(clips), longest)
    tally.captions += [tokenizer.decode(ids).strip() for ids in written]


def _stack(texts: Sequence[PackedText], name: str, device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack([getattr(text, name) for text in texts])).to(device)
