"""Writing text token by token, many prompts at once, each about its own video."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xgenvideo.data.text import question_prompt
from xgenvideo.data.tokenizer import BOS, CAPTION_END, EOS, PAD, Tokenizer
from xgenvideo.errors import ConfigError
from xgenvideo.infer.cache import DecodingCache
from xgenvideo.models.video_lm import VideoLM

STOPS = (EOS, CAPTION_END, PAD, BOS)
UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no letter yet


@dataclass(frozen=True)
class Draw:
    """How the next token is chosen: 0 takes the likeliest, otherwise from the `top_p` nucleus, repeatably by `seed`.

    With `only`, a text is one of these lists of ids, each without its end.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    only: Sequence[Sequence[int]] | None = None


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
    only: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """New ids after each prompt, up to and without the first special token; latents [B Q Dr] or None for text alone.

    temperature 0 takes the likeliest token; otherwise tokens are drawn from the smallest set whose probability reaches
    `top_p` (nucleus sampling, arXiv 1904.09751), repeatably for a given `seed`. Ids that the tokenizer does not have
    are never chosen. With `only`, each text is one of these lists of ids, chosen token by token. The video and the text
    so far are read once (`DecodingCache`). Raises ConfigError for an impossible request.
    """
    draw = Draw(temperature, top_p, seed, only)
    _check(prompt_ids, latents, max_new_tokens, draw)
    written: list[list[int]] = [[] for _ in prompt_ids]
    count = len(prompt_ids)
    for chosen in steps(model, tokenizer, latents, prompt_ids, [max_new_tokens] * count, [draw] * count):
        for row, token in chosen:
            written[row].append(token)
    return written


@torch.inference_mode()
def stream(
    model: VideoLM,
    tokenizer: Tokenizer,
    latents: Tensor | None,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    draw: Draw,
) -> Iterator[str]:
    """The text that `generate` would write after one prompt, in pieces as they are written; latents [1 Q Dr] or None.

    A piece never ends within a letter: bytes of an unfinished one wait for the next token. Raises ConfigError.
    """
    _check([prompt_ids], latents, max_new_tokens, draw)
    speech = Speech(tokenizer)
    for chosen in steps(model, tokenizer, latents, [prompt_ids], [max_new_tokens], [draw]):
        for _, token in chosen:
            if piece := speech.add(token):
                yield piece
    if piece := speech.end():
        yield piece


class Speech:
    """Ids to text as they are written, in pieces that never end within a letter."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids: list[int] = []
        self._tokenizer, self._said = tokenizer, ""

    def add(self, token: int) -> str:
        """The text that the token completes, or nothing yet."""
        self.ids.append(token)
        text = self._tokenizer.decode(self.ids)
        return "" if text.endswith(UNFINISHED) else self._piece(text)

    def end(self) -> str:
        """What is left, when nothing follows."""
        return self._piece(self._tokenizer.decode(self.ids))

    def _piece(self, text: str) -> str:
        piece, self._said = text[len(self._said) :], text
        return piece


@torch.inference_mode()
def beam_search(
    model: VideoLM,
    tokenizer: Tokenizer,
    latents: Tensor | None,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    beams: int = 4,
) -> tuple[list[int], float]:
    """The likeliest text that `beams` hypotheses find after one prompt, and its log-probability in nats.

    The probability is of the whole text with the special token that ends it, not divided by the length; a text cut at
    `max_new_tokens` has no end to pay for. latents [1 Q Dr] or None. Raises ConfigError for an impossible request.
    """
    _check([prompt_ids], latents, max_new_tokens, Draw())
    if beams < 1:
        raise ConfigError("beams", beams, "must be at least 1")
    room = len(prompt_ids) + max_new_tokens
    cache = DecodingCache(model.decoder, latents, [0], room)
    live: list[tuple[list[int], float]] = [([], 0.0)]
    ended: tuple[list[int], float] = ([], float("-inf"))
    scores = cache.start([prompt_ids])
    for step in range(max_new_tokens):
        totals = scores[:, : tokenizer.size].double().log_softmax(-1)
        totals += torch.tensor([total for _, total in live], dtype=totals.dtype, device=totals.device)[:, None]
        stops = totals[:, list(STOPS)].max(dim=-1).values.tolist()
        endings = [(ids, total) for (ids, _), total in zip(live, stops, strict=True)]
        ended = max([ended, *endings], key=lambda one: one[1])
        totals[:, list(STOPS)] = float("-inf")
        best = totals.flatten().topk(min(totals.numel(), beams))
        found = [(*divmod(int(i), tokenizer.size), float(v)) for v, i in zip(best.values, best.indices, strict=True)]
        # A text only grows less likely: what is behind an ended one already cannot overtake it.
        going = [(row, token, v) for row, token, v in found if v > ended[1]]
        live = [([*live[row][0], token], v) for row, token, v in going]
        if not live or step + 1 == max_new_tokens:
            break
        cache.keep([row for row, _, _ in going])
        scores = cache.step([token for _, token, _ in going])
    return max([ended, *live], key=lambda one: one[1])


def caption_prompt() -> list[int]:
    """What a caption is written after."""
    return [BOS]


def question_ids(question: str, tokenizer: Tokenizer) -> list[int]:
    """What an answer to `question` is written after."""
    return [BOS, *tokenizer.encode(question_prompt(question))]


def _check(prompt_ids: Sequence[Sequence[int]], latents: Tensor | None, max_new_tokens: int, draw: Draw) -> None:
    if not prompt_ids or not all(len(ids) for ids in prompt_ids):
        raise ConfigError("prompt_ids", list(map(len, prompt_ids)), "every prompt needs at least one token")
    if latents is not None and len(latents) != len(prompt_ids):
        raise ConfigError("latents", list(latents.shape), f"must be of as many videos as prompts, {len(prompt_ids)}")
    if max_new_tokens < 1:
        raise ConfigError("max_new_tokens", max_new_tokens, "must be at least 1")
    if not 0 <= draw.temperature < float("inf"):
        raise ConfigError("temperature", draw.temperature, "must be 0 (the likeliest token) or a positive number")
    if not 0 < draw.top_p <= 1:
        raise ConfigError("top_p", draw.top_p, "must be above 0 and at most 1")
    if draw.only is not None and not all(0 < len(ids) <= max_new_tokens for ids in draw.only or [()]):
        lengths = list(map(len, draw.only))
        raise ConfigError("only", lengths, f"must be texts of 1 to max_new_tokens = {max_new_tokens} tokens")


@torch.inference_mode()
def steps(
    model: VideoLM,
    tokenizer: Tokenizer,
    latents: Tensor | None,
    prompt_ids: Sequence[Sequence[int]],
    lengths: Sequence[int],
    draws: Sequence[Draw],
    unwanted: Callable[[int], bool] = lambda row: False,
) -> Iterator[list[tuple[int, int]]]:
    """One list a step of (prompt, token) for the texts that go on; text i has at most `lengths[i]` tokens.

    Texts with the same Draw object are drawn together. A text that is `unwanted` is left before its next token.
    """
    randoms = {id(draw): torch.Generator().manual_seed(draw.seed) if draw.seed is not None else None for draw in draws}
    going = list(range(len(prompt_ids)))
    written: list[list[int]] = [[] for _ in prompt_ids]
    cache = DecodingCache(model.decoder, latents, going, max(map(len, prompt_ids)) + max(lengths))
    scores = cache.start(prompt_ids)
    while True:
        scores = scores[:, : tokenizer.size].float()
        tokens = _draw(scores, [written[row] for row in going], [draws[row] for row in going], randoms)
        chosen = list(zip(going, tokens, strict=True))
        kept = [i for i, (row, token) in enumerate(chosen) if token not in STOPS and not unwanted(row)]
        for row, token in (chosen[i] for i in kept):
            written[row].append(token)
        yield [chosen[i] for i in kept]
        kept = [i for i in kept if len(written[going[i]]) < lengths[going[i]]]
        if not kept:
            return
        cache.keep(kept)
        going = [going[i] for i in kept]
        scores = cache.step([written[row][-1] for row in going])


def _draw(
    scores: Tensor,
    written: Sequence[list[int]],
    draws: Sequence[Draw],
    randoms: dict[int, torch.Generator | None],
) -> list[int]:
    """One token a row, each drawn as its Draw says; scores [B V]."""
    tokens = [0] * len(draws)
    for draw in {id(draw): draw for draw in draws}.values():
        rows = [row for row, one in enumerate(draws) if one is draw]
        part = scores if len(rows) == len(draws) else scores[rows]
        if draw.only is not None:
            part = _allowed(part, [written[row] for row in rows], draw.only)
        for row, token in zip(rows, _choose(part, draw.temperature, draw.top_p, randoms[id(draw)]), strict=True):
            tokens[row] = token
    return tokens


def _allowed(scores: Tensor, written: Sequence[list[int]], only: Sequence[Sequence[int]]) -> Tensor:
    """Scores [B V], minus infinity for every token that leads to none of the texts `only`."""
    barred = torch.full_like(scores, float("-inf"))
    for row, ids in enumerate(written):
        count = len(ids)
        following = {[*text, EOS][count] for text in only if list(text[:count]) == ids}
        chosen = torch.tensor(sorted(following), device=scores.device)
        barred[row, chosen] = scores[row, chosen]
    return barred


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
