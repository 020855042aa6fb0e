"""Writing text token by token, many prompts at once, each about its own video."""

from collections.abc import Sequence

import torch
from torch import Tensor

from xgenvideo.data.text import question_prompt
from xgenvideo.data.tokenizer import BOS, CAPTION_END, EOS, PAD, Tokenizer
from xgenvideo.errors import ConfigError
from xgenvideo.models.video_lm import VideoLM

STOPS = (EOS, CAPTION_END, PAD, BOS)


@torch.inference_mode()
def generate(
    model: VideoLM,
    tokenizer: Tokenizer,
    latents: Tensor | None,
    prompt_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> list[list[int]]:
    """New ids after each prompt, up to and without the first special token; latents [B Q Dr] or None for text alone.

    temperature 0 takes the likeliest token; otherwise tokens are drawn from the smallest set whose probability reaches
    `top_p` (nucleus sampling, arXiv 1904.09751), repeatably for a given `seed`. Ids that the tokenizer does not have
    are never chosen. The prefix is computed again for every token: exact and simple, slow for long texts.
    Raises ConfigError for an impossible request.
    """
    _check(prompt_ids, latents, max_new_tokens, temperature, top_p)
    device = model.logit_scale.device
    random = torch.Generator().manual_seed(seed) if seed is not None else None
    written: list[list[int]] = [[] for _ in prompt_ids]
    going = list(range(len(prompt_ids)))
    for _ in range(max_new_tokens):
        texts = [[*prompt_ids[row], *written[row]] for row in going]
        seen = None if latents is None else latents[going]
        scores = _next_scores(model, texts, seen, device)[:, : tokenizer.size]
        chosen = _choose(scores, temperature, top_p, random)
        for row, token in zip(list(going), chosen, strict=True):
            if token in STOPS:
                going.remove(row)
            else:
                written[row].append(token)
        if not going:
            break
    return written


def caption_prompt() -> list[int]:
    """What a caption is written after."""
    return [BOS]


def question_ids(question: str, tokenizer: Tokenizer) -> list[int]:
    """What an answer to `question` is written after."""
    return [BOS, *tokenizer.encode(question_prompt(question))]


def _check(
    prompt_ids: Sequence[Sequence[int]], latents: Tensor | None, max_new_tokens: int, temperature: float, top_p: float
) -> None:
    if not prompt_ids or not all(len(ids) for ids in prompt_ids):
        raise ConfigError("prompt_ids", list(map(len, prompt_ids)), "every prompt needs at least one token")
    if latents is not None and len(latents) != len(prompt_ids):
        raise ConfigError("latents", list(latents.shape), f"must be of as many videos as prompts, {len(prompt_ids)}")
    if max_new_tokens < 1:
        raise ConfigError("max_new_tokens", max_new_tokens, "must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise ConfigError("temperature", temperature, "must be 0 (the likeliest token) or a positive number")
    if not 0 < top_p <= 1:
        raise ConfigError("top_p", top_p, "must be above 0 and at most 1")


def _next_scores(
    model: VideoLM, texts: Sequence[Sequence[int]], latents: Tensor | None, device: torch.device
) -> Tensor:
    """Logits [B V] of the token after each text; padding comes last and is a document of its own."""
    lengths = torch.tensor([len(text) for text in texts], device=device)
    longest = int(lengths.max())
    tokens = torch.tensor([[*text, *[PAD] * (longest - len(text))] for text in texts], device=device)
    places = torch.arange(longest, device=device).expand(len(texts), longest)
    real = places < lengths[:, None]
    documents = torch.where(real, 0, -1)
    hidden = model.decoder.lower(tokens, places, documents)
    hidden = model.decoder.upper(hidden, places, documents, latents, real)
    last = hidden[torch.arange(len(texts), device=device), lengths - 1]
    scores: Tensor = model.decoder.head(last)
    return scores.float()


def _choose(scores: Tensor, temperature: float, top_p: float, random: torch.Generator | None) -> list[int]:
    """One token a row; scores [B V]."""
    if temperature == 0:
        likeliest: list[int] = scores.argmax(dim=-1).tolist()
        return likeliest
    # Drawn on the CPU, so that a seed gives the same text on every device.
    scores = scores.cpu().double()
    # The maximum goes first: a tiny temperature then gives minus infinity, not NaN.
    probabilities = ((scores - scores.max(dim=-1, keepdim=True).values) / temperature).softmax(dim=-1)
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = ordered.masked_fill(before >= top_p, 0.0)
    drawn = torch.multinomial(kept, 1, generator=random)
    tokens: list[int] = ids.gather(-1, drawn)[:, 0].tolist()
    return tokens
