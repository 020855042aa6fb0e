"""Writing token by token and scoring, against plain loops over one text."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from xgenvideo.data.text import question_document
from xgenvideo.data.tokenizer import BOS, EOS, Tokenizer
from xgenvideo.errors import ConfigError
from xgenvideo.infer.generate import STOPS, caption_prompt, generate, question_ids
from xgenvideo.infer.likelihood import log_likelihoods, option_documents
from xgenvideo.models.video_lm import VideoLM


@pytest.fixture(scope="module")
def latents(small_model: VideoLM) -> Tensor:
    """Latents of three made-up clips."""
    random = torch.Generator().manual_seed(5)
    frames = torch.randint(0, 256, (3, 4, 3, 64, 64), generator=random, dtype=torch.uint8)
    pts = torch.arange(4).expand(3, 4) / 2
    with torch.inference_mode():
        return small_model.latents(small_model.encode_frames(frames), pts, torch.ones(3, 4, dtype=torch.bool))


def next_logits(model: VideoLM, ids: list[int], latents: Tensor | None) -> Tensor:
    """Logits [V] after `ids`, all computed."""
    tokens = torch.tensor([ids])
    positions = torch.arange(len(ids))[None]
    seen = torch.ones_like(tokens, dtype=torch.bool)
    with torch.inference_mode():
        return model.logits(tokens, positions, torch.zeros_like(tokens), latents, seen)[0, -1]


def test_greedy_in_a_batch_is_greedy_alone(small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor) -> None:
    prompts = [caption_prompt(), question_ids("Which appears first?", twins_tokenizer), [BOS, 40, 41]]
    written = generate(small_model, twins_tokenizer, latents, prompts, 12)
    for row, prompt in enumerate(prompts):
        ids: list[int] = []
        while len(ids) < 12:
            logits = next_logits(small_model, [*prompt, *ids], latents[row : row + 1])
            token = int(logits[: twins_tokenizer.size].argmax())
            if token in STOPS:
                break
            ids.append(token)
        assert written[row] == ids


def test_a_special_token_ends_the_text(small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor) -> None:
    weight = small_model.decoder.head.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.zero_()
        # All logits are equal: the first id, <|pad|>, is the likeliest, and ends the text.
        assert generate(small_model, twins_tokenizer, latents, [[BOS]] * 3, 5) == [[], [], []]
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_sampling_is_repeatable_and_follows_the_probabilities(
    small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor
) -> None:
    def sample(seed: int, top_p: float = 1.0, temperature: float = 1.0) -> list[list[int]]:
        return generate(small_model, twins_tokenizer, latents, [[BOS]] * 3, 6, temperature, top_p, seed)

    assert sample(1) == sample(1) != sample(2)
    greedy = generate(small_model, twins_tokenizer, latents, [[BOS]] * 3, 6)
    assert sample(3, top_p=1e-6) == greedy
    assert sample(3, temperature=1e-9) == greedy
    size = twins_tokenizer.size
    expected = next_logits(small_model, [BOS], latents[:1])[:size].double().softmax(-1)
    count = 2000
    drawn = generate(small_model, twins_tokenizer, latents[[0] * count], [[BOS]] * count, 1, 1.0, 1.0, 0)
    found = Counter(ids[0] for ids in drawn if ids)
    likely = [int(i) for i in expected.topk(5).indices if int(i) not in STOPS]
    for token in likely:
        share = float(expected[token])
        assert found[token] / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5 + 1e-3)


def test_a_nucleus_holds_no_unlikely_token(small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor) -> None:
    expected = next_logits(small_model, [BOS], latents[:1])[: twins_tokenizer.size].double().softmax(-1)
    ordered = expected.sort(descending=True)
    inside = {int(i) for i in ordered.indices[: int((ordered.values.cumsum(0) < 0.3).sum()) + 1]}
    drawn = generate(small_model, twins_tokenizer, latents[[0] * 400], [[BOS]] * 400, 1, 1.0, 0.3, 0)
    assert {ids[0] for ids in drawn if ids} == inside - set(STOPS)


def test_impossible_requests_are_refused(small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor) -> None:
    good: dict[str, Any] = {"prompt_ids": [[BOS]] * 3, "max_new_tokens": 4, "temperature": 0.0, "top_p": 1.0}
    changes: tuple[dict[str, Any], ...] = (
        {"prompt_ids": []},
        {"prompt_ids": [[BOS]]},
        {"prompt_ids": [[BOS], [], [BOS]]},
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
    )
    for change in changes:
        with pytest.raises(ConfigError):
            generate(small_model, twins_tokenizer, latents, **(good | change))


def test_likelihoods_in_any_order_and_batch_are_those_of_one_text(
    small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor
) -> None:
    options = ("the red circle", "a blue star and then a green square", "x")
    documents = [
        *option_documents("Which appears first?", options, twins_tokenizer),
        question_document("?", "yes", twins_tokenizer),
    ]
    videos = [2, 0, 1, 1]
    found = log_likelihoods(small_model, documents, latents, videos, rows=2)
    for document, video, value in zip(documents, videos, found, strict=True):
        ids = list(document.ids)
        assert ids[-1] == EOS
        expected = sum(
            float(next_logits(small_model, ids[:i], latents[video : video + 1]).log_softmax(-1)[ids[i]])
            for i in range(document.predicted_from, len(ids))
        )
        assert value == pytest.approx(expected, abs=1e-3)
    blind = log_likelihoods(small_model, documents[:1], None, [0])[0]
    assert blind != pytest.approx(found[0], abs=1e-3)
