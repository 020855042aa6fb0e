"""Writing token by token and scoring, against plain loops over one text."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from xgenvideo.data.text import question_document
from xgenvideo.data.tokenizer import BOS, EOS, Tokenizer
from xgenvideo.errors import ConfigError
from xgenvideo.infer import one_token
from xgenvideo.infer.cache import DecodingCache
from xgenvideo.infer.generate import (
    STOPS,
    Draw,
    beam_search,
    caption_prompt,
    generate,
    question_ids,
    steps,
    stream,
)
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


@pytest.fixture(scope="module")
def text_prompts(twins_tokenizer: Tokenizer) -> list[list[int]]:
    """Three prompts of unequal length, so that a batch of them is padded."""
    return [caption_prompt(), question_ids("Which appears first?", twins_tokenizer), [BOS, 40, 41]]


def as_llama(model: VideoLM, size: int) -> LlamaForCausalLM:
    """The decoder's self-attention blocks as transformers' Llama: what the decoder is without a video."""
    config = model.config.decoder
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_size,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=False,
            eos_token_id=list(STOPS),
            pad_token_id=0,
            bos_token_id=BOS,
        )
    )
    names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "out": "self_attn.o_proj"}
    names |= {part: f"self_attn.{part}_proj" for part in "qkv"}
    names |= {f"mlp.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    state = {"model.embed_tokens.weight": model.decoder.embedding.weight[:size]}
    state |= {"model.norm.weight": model.decoder.norm.weight, "lm_head.weight": model.decoder.head.weight[:size]}
    for i in range(config.depth):
        for ours, theirs in names.items():
            state[f"model.layers.{i}.{theirs}.weight"] = model.decoder.get_parameter(f"layers.{i}.{ours}.weight")
    llama.load_state_dict(state)
    return llama.eval()


def test_transformers_writes_the_same_tokens(
    small_model: VideoLM, twins_tokenizer: Tokenizer, text_prompts: list[list[int]]
) -> None:
    llama = as_llama(small_model, twins_tokenizer.size)
    written = generate(small_model, twins_tokenizer, None, text_prompts, 24)
    for prompt, ids in zip(text_prompts, written, strict=True):
        given = torch.tensor([prompt])
        theirs = llama.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=24, do_sample=False)
        new = theirs[0, len(prompt) :].tolist()
        assert ids == (new[:-1] if new[-1] in STOPS else new)
    assert any(written)


@pytest.mark.parametrize("joined", [one_token.JOINED_NUMBERS, 0], ids=["small weights", "large weights"])
def test_the_cache_gives_the_logits_of_the_whole_text(
    small_model: VideoLM,
    text_prompts: list[list[int]],
    latents: Tensor,
    joined: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(one_token, "JOINED_NUMBERS", joined)
    texts = [list(prompt) for prompt in text_prompts]
    with torch.inference_mode():
        cache = DecodingCache(small_model.decoder, latents, [2, 0, 2], 40)
        found = cache.start(texts)
        videos = [2, 0, 2]
        for step in range(6):
            for row, text in enumerate(texts):
                expected = next_logits(small_model, text, latents[videos[row] : videos[row] + 1])
                torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)
            rows = [[0, 1, 2], [2, 1, 0], [2, 2, 1], [0, 1], [1, 1], [0, 1]][step]
            texts, videos = [list(texts[row]) for row in rows], [videos[row] for row in rows]
            cache.keep(rows)
            new = [50 + step + row for row in range(len(rows))]
            for text, one in zip(texts, new, strict=True):
                text.append(one)
            found = cache.step(new)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-11), (torch.bfloat16, 0.05)])
def test_a_token_at_a_time_is_the_whole_prompt_in_every_precision(
    small_model: VideoLM, latents: Tensor, dtype: torch.dtype, close: float
) -> None:
    decoder = copy.deepcopy(small_model.decoder).to(dtype)
    text = [1, 40, 50, 60, 70, 80]
    with torch.inference_mode():
        whole = DecodingCache(decoder, latents[:1].to(dtype), [0], 8).start([text])
        cache = DecodingCache(decoder, latents[:1].to(dtype), [0], 8)
        found = cache.start([text[:1]])
        for one in text[1:]:
            found = cache.step([one])
    assert found.dtype == dtype
    assert float((found - whole).norm() / whole.norm()) < close


def test_a_stream_is_the_text_in_whole_letters(
    small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor, text_prompts: list[list[int]]
) -> None:
    for seed in range(5):
        draw = Draw(1.0, 1.0, seed)
        pieces = list(stream(small_model, twins_tokenizer, latents[:1], text_prompts[1], 20, draw))
        whole = generate(small_model, twins_tokenizer, latents[:1], text_prompts[1:2], 20, 1.0, 1.0, seed)[0]
        assert "".join(pieces) == twins_tokenizer.decode(whole)
        assert all(pieces)
        assert not any(piece.endswith("\ufffd") for piece in pieces[:-1])


def test_only_an_option_is_written(small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor) -> None:
    options = [" the red circle", " the red star", " yes", " the red"]
    only = [twins_tokenizer.encode(option) for option in options]
    found = set()
    for seed in range(12):
        ids = generate(small_model, twins_tokenizer, latents, [[BOS]] * 3, 16, 1.0, 1.0, seed, only)
        found |= {twins_tokenizer.decode(one) for one in ids}
    assert found <= set(options)
    assert len(found) > 1
    with pytest.raises(ConfigError, match="only"):
        generate(small_model, twins_tokenizer, latents, [[BOS]] * 3, 1, only=only)


def test_beams_as_many_as_tokens_find_the_likeliest_text(
    small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor
) -> None:
    size, about = twins_tokenizer.size, latents[:1]
    first = next_logits(small_model, [BOS], about)[:size].double().log_softmax(-1)
    likeliest: tuple[list[int], float] = ([], max(float(first[stop]) for stop in STOPS))
    for token in set(range(size)) - set(STOPS):
        second = float(first[token]) + next_logits(small_model, [BOS, token], about)[:size].double().log_softmax(-1)
        value, best = second.max(0)
        if float(value) > likeliest[1]:
            likeliest = ([token] if int(best) in STOPS else [token, int(best)], float(value))
    ids, value = beam_search(small_model, twins_tokenizer, about, [BOS], 2, beams=size)
    assert ids == likeliest[0]
    assert value == pytest.approx(likeliest[1], abs=1e-4)


def test_one_beam_follows_the_greedy_text_and_may_end_it_earlier(
    small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor
) -> None:
    about = latents[:1]
    greedy = generate(small_model, twins_tokenizer, about, [[BOS]], 12)[0]
    steps = [next_logits(small_model, [BOS, *greedy[:i]], about) for i in range(len(greedy) + 1)]
    logs = [step[: twins_tokenizer.size].double().log_softmax(-1) for step in steps]
    totals = [sum(float(logs[i][greedy[i]]) for i in range(end)) for end in range(len(greedy) + 1)]
    ends = [totals[i] + max(float(logs[i][stop]) for stop in STOPS) for i in range(len(greedy))]
    ids, value = beam_search(small_model, twins_tokenizer, about, [BOS], 12, beams=1)
    assert len(greedy) == 12
    assert ids == greedy[: len(ids)]
    assert value == pytest.approx(max(*ends, totals[-1]), abs=1e-4)


def test_texts_of_one_batch_keep_their_own_wishes(
    small_model: VideoLM, twins_tokenizer: Tokenizer, latents: Tensor
) -> None:
    prompts = [caption_prompt(), question_ids("Which appears first?", twins_tokenizer), [BOS, 40, 41]]
    draws = [Draw(), Draw(1.0, 0.9, 7), Draw(only=[[50, 51, 52], [60, 61, 62]])]
    lengths = [3, 9, 5]
    written: list[list[int]] = [[], [], []]
    for chosen in steps(small_model, twins_tokenizer, latents, prompts, lengths, draws):
        for row, token in chosen:
            written[row].append(token)
    for row, (prompt, draw) in enumerate(zip(prompts, draws, strict=True)):
        wishes = (draw.temperature, draw.top_p, draw.seed, draw.only)
        assert generate(small_model, twins_tokenizer, latents[row : row + 1], [prompt], lengths[row], *wishes) == [
            written[row]
        ]
    left = [len(chosen) for chosen in steps(small_model, twins_tokenizer, latents, prompts, lengths, draws, bool)]
    assert max(left) == 1, "texts 1 and 2 are unwanted from the start"
