"""Decoding against transformers.generate on the same tiny weights, one thread. Run: make bench-infer.

Without a video the decoder is a Llama, which transformers runs too: both must write the same tokens, then rounds of the
two alternate. The same weights about a video have no counterpart there and are timed alone.
Writes bench/results/infer.json.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from xgenvideo import recipes
from xgenvideo.data.tokenizer import BOS
from xgenvideo.infer.cache import DecodingCache
from xgenvideo.models.video_lm import VideoLM, build_model

ROUNDS, PROMPT_TOKENS, NEW_TOKENS = 60, 16, 64
BATCHES = (1, 8)
RESULTS = Path(__file__).parent / "results"


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


def alternate(sides: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Wall-clock seconds of each side by round; every round runs all, in turning order, after one unmeasured round."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS + 1):
        for name in list(sides) if number % 2 else reversed(list(sides)):
            started = time.perf_counter()
            sides[name]()
            if number:
                taken[name].append(time.perf_counter() - started)
    return taken


def compare(model: VideoLM, llama: LlamaForCausalLM, batch: int) -> dict[str, object]:
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
        }
    )
    seconds = {name: round(statistics.median(values), 5) for name, values in taken.items()}
    # By round: what else the machine does then slows both sides.
    ratios = [other / mine for mine, other in zip(taken["xgenvideo"], taken["transformers"], strict=True)]
    quartiles = [round(value, 3) for value in statistics.quantiles(ratios, n=4)]
    print(f"batch {batch}: median seconds {seconds}; times as fast as transformers, quartiles: {quartiles}")
    return {"batch": batch, "same_tokens": same, "median_seconds": seconds, "speedup_quartiles": quartiles}


def main() -> None:
    """Compare at every batch size and write the results."""
    torch.set_num_threads(1)
    load = round(os.getloadavg()[0], 2)
    model = build_model(recipes.find("tiny")).eval()
    llama = as_llama(model)
    rows = [compare(model, llama, batch) for batch in BATCHES]
    about = {
        "weights": "recipe tiny, untrained; decoder without its cross blocks on both sides, float32",
        "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": NEW_TOKENS,
        "rounds": ROUNDS,
        "load_average_at_start": load,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "infer.json").write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
