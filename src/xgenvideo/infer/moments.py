"""Moments of a long video: short overlapping spans, each read alone, so that one can be found among many.

A window of the encoder may show several scenes; its embedding is a blend that fits the text of none of them. A moment
is a quarter of a window, and one starts every quarter of a moment, so that whatever happens is nearly whole in one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xgenvideo.data.text import caption_document
from xgenvideo.errors import ConfigError
from xgenvideo.infer.embed import embed_text
from xgenvideo.infer.generate import caption_prompt, generate, question_ids
from xgenvideo.infer.likelihood import log_likelihoods
from xgenvideo.infer.release import NEW_TOKENS, Release, Window

# Frames of a window to those of a moment, and those of a moment to those between two starts.
MOMENTS_A_WINDOW = 4
STARTS_A_MOMENT = 4
# So many of the nearest by cosine are compared by likelihood too, which costs a pass of the decoder each.
CONSIDERED = 20


@dataclass(frozen=True, repr=False)
class Moments:
    """latents [M Q Dr] and unit vectors [M E] of the moments of one video, and the seconds that each spans."""

    latents: Tensor
    vectors: Tensor
    spans: tuple[tuple[float, float], ...]

    def __repr__(self) -> str:
        return f"Moments({len(self.spans)}, latents={list(self.latents.shape)}, seconds={self.spans[-1][1]:.1f})"


def moments(release: Release, windows: Iterable[Window]) -> Moments:
    """All moments of a video's consecutive windows (`Release.windows`), held one window at a time."""
    device = release.model.logit_scale.device
    return read_moments(release, ((release.model.encode_frames(one.frames.to(device)), one.pts) for one in windows))


def read_moments(release: Release, encoded: Iterable[tuple[Tensor, Tensor]]) -> Moments:
    """As `moments`, from windows that are encoded: features [F P Wv] and pts [F] in seconds, one after the other."""
    latents, vectors, spans = zip(*cut_moments(release, encoded), strict=True)
    return Moments(torch.cat(latents), torch.cat(vectors), tuple(span for some in spans for span in some))


@torch.inference_mode()
def cut_moments(
    release: Release, encoded: Iterable[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor, list[tuple[float, float]]]]:
    """latents [M Q Dr], unit vectors [M E] and spans of the moments that each further encoded window completes."""
    model, step = release.model, 1 / release.config.data.fps
    for features, pts in _cut(encoded, max(2, release.config.data.frames // MOMENTS_A_WINDOW)):
        # Each moment's clock starts at its own beginning, as a training clip's does.
        seconds = (pts - pts[:, :1]).to(features.device)
        latents = model.latents(features, seconds, torch.ones_like(seconds, dtype=torch.bool))
        vectors = model.video_embedding(latents).float().cpu()
        yield latents, vectors, [(float(one[0]), float(one[-1]) + step) for one in pts]


def _cut(encoded: Iterable[tuple[Tensor, Tensor]], length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [M L P Wv] and pts [M L] of the moments that each further window completes; the last may be shorter."""
    stride = max(1, length // STARTS_A_MOMENT)
    held: tuple[Tensor, Tensor] | None = None
    fresh = 0
    for window in encoded:
        fresh += len(window[1])
        held = window if held is None else (torch.cat((held[0], window[0])), torch.cat((held[1], window[1])))
        starts = range(0, len(held[1]) - length + 1, stride)
        if starts:
            yield (
                torch.stack([held[0][at : at + length] for at in starts]),
                torch.stack([held[1][at : at + length] for at in starts]),
            )
            fresh = len(held[1]) - starts[-1] - length
            held = (held[0][starts[-1] + stride :], held[1][starts[-1] + stride :])
    if held is not None and fresh:
        yield held[0][None], held[1][None]


@torch.inference_mode()
def rank_by_caption(release: Release, found: Moments, text: str, considered: int = CONSIDERED) -> list[int]:
    """Numbers of the `considered` moments nearest to `text` by cosine, best first.

    Best by the sum of two log-likelihood ratios in nats, as experts are multiplied: the scaled cosine is what the
    contrastive loss fits to log p(text | moment) / p(text), the decoder's log-likelihood is the same up to a constant.
    """
    cosines = found.vectors @ torch.from_numpy(embed_text(release, text))
    near = cosines.argsort(descending=True, stable=True)[:considered].tolist()
    document = caption_document(text, release.tokenizer, release.config.data.text_tokens)
    likely = log_likelihoods(release.model, [document] * len(near), found.latents, near)
    scale = float(release.model.logit_scale.exp())
    sums = {number: nats + scale * float(cosines[number]) for number, nats in zip(near, likely, strict=True)}
    return sorted(near, key=lambda number: -sums[number])


def moment_for_question(release: Release, found: Moments, question: str, options: Sequence[str] = ()) -> int:
    """Number of the moment nearest by cosine to the question, alone or followed by one of its options."""
    texts = (question, *(f"{question} {option}" for option in options))
    asked = torch.stack([torch.from_numpy(embed_text(release, text)) for text in texts])
    return int((found.vectors @ asked.T).amax(dim=1).argmax())


def answer_at(
    release: Release, video: Path, question: str, at: str, max_new_tokens: int = NEW_TOKENS
) -> tuple[str, tuple[float, float]]:
    """The likeliest answer (a caption for an empty question) from the moment that shows `at`, and its span in seconds.

    The video is read once. Raises ConfigError for an empty `at`, MediaError for a video that cannot be read.
    """
    if not at.strip():
        raise ConfigError("--at", at, "must say what is to be seen in the moment, as a caption would")
    found = moments(release, release.windows(video))
    best = rank_by_caption(release, found, at)[0]
    ids = question_ids(question, release.tokenizer) if question.strip() else caption_prompt()
    written = generate(release.model, release.tokenizer, found.latents[best][None], [ids], max_new_tokens)
    return release.tokenizer.decode(written[0]).strip(), found.spans[best]
