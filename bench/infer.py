"""Decoding against transformers.generate on the same tiny weights, one thread. Run: make bench-infer.

Without a video the decoder is a Llama, which transformers runs too: both must write the same tokens, then rounds of the
two alternate. The same weights about a video have no counterpart there and are timed alone.
Writes bench/results/infer.json.
"""

import argparse
import statistics
from pathlib import Path

import torch
from fair import RESULTS, alternate, quartiles, write
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from xgenvideo import recipes
from xgenvideo.data.tokenizer import BOS
from xgenvideo.infer.cache import DecodingCache
from xgenvideo.models.video_lm import VideoLM, build_model

ROUNDS, PROMPT_TOKENS, NEW_TOKENS = 60, 16, 64
BATCHES = (1, 8)


@torch.inference_mode()
def ours(model: VideoLM, prompts: list[list[int]], latents: Tensor | None) -> list[list[int]]:
    """NEW_TOKENS greedy ids after each prompt, no id ending a text: both sides do the same work."""
    cache = DecodingCache(model.decoder, latents, range(len(prompts)), PROMPT_TOKENS + NEW_TOKENS)
    chosen = [cache.start(prompts).argmax(-1).tolist()]
    for _ in range(NEW_TOKENS - 1):
        chosen.append(cache.step(chosen[-1]).argmax(-1).tolist())
    return [list(row) for row in zip(*chosen, strict=True)]


def theirs(llama: LlamaForCausalLM, prompts: list[list[int]]) -> list[list[int]]:
    """The same by transformers, with its cache."""
    given = torch.tensor(prompts)
    made = llama.generate(  # type: ignore[misc]
        given, attention_mask=torch.ones_like(given), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )
    rows: list[list[int]] = made[:, PROMPT_TOKENS:].tolist()
    return rows


def as_llama(model: VideoLM) -> LlamaForCausalLM:
    """The decoder's self-attention blocks as transformers' Llama, with no id that ends a text."""
    config = model.config.decoder
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab,
            hidden_size=config.width,
            intermediate_size=config.mlp,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_size,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=False,
            eos_token_id=None,
            bos_token_id=BOS,
        )
    )
    names = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm", "out": "self_attn.o_proj"}
    names |= {part: f"self_attn.{part}_proj" for part in "qkv"}
    names |= {f"mlp.{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    decoder = model.decoder
    state: dict[str, Tensor] = {"model.embed_tokens.weight": decoder.embedding.weight}
    state |= {"model.norm.weight": decoder.norm.weight, "lm_head.weight": decoder.head.weight}
    for i in range(config.depth):
        for mine, other in names.items():
            state[f"model.layers.{i}.{other}.weight"] = decoder.get_parameter(f"layers.{i}.{mine}.weight")
    llama.load_state_dict(state)
    llama.train(False)
    return llama


def compare(model: VideoLM, llama: LlamaForCausalLM, batch: int, rounds: int) -> dict[str, object]:
    """Seconds for one batch on both sides and with a video, after the tokens were found equal."""
    random = torch.Generator().manual_seed(batch)
    prompts = torch.randint(4, model.config.decoder.vocab, (batch, PROMPT_TOKENS), generator=random).tolist()
    resampler = model.config.resampler
    latents = torch.randn(batch, resampler.queries, resampler.width, generator=random)
    same = ours(model, prompts, None) == theirs(llama, prompts)
    if not same:
        raise SystemExit("the two sides write different tokens: nothing to compare")
    taken = alternate(
        {
            "xgenvideo": lambda: ours(model, prompts, None),
            "transformers": lambda: theirs(llama, prompts),
            "xgenvideo_with_video": lambda: ours(model, prompts, latents),
        },
        rounds,
    )
    seconds = {name: round(statistics.median(values), 5) for name, values in taken.items()}
    ratios = quartiles(taken["transformers"], taken["xgenvideo"])
    print(f"batch {batch}: median seconds {seconds}; times as fast as transformers, quartiles: {ratios}")
    return {"batch": batch, "same_tokens": same, "median_seconds": seconds, "speedup_quartiles": ratios}


def main() -> None:
    """Compare at every batch size and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "infer.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = build_model(recipes.find("tiny")).eval()
    llama = as_llama(model)
    rows = [compare(model, llama, batch, asked.rounds) for batch in BATCHES]
    told = {
        "weights": "recipe tiny, untrained; decoder without its cross blocks on both sides, float32",
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "rounds": asked.rounds,
        "threads": torch.get_num_threads(),
    }
    write(asked.out, {"about": told, "rows": rows}, "transformers")


if __name__ == "__main__":
    main()
