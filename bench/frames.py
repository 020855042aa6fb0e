"""What more frames cost: our fixed-size latent against the same decoder with the visual tokens in its sequence.

Run: make bench-frames. The peer is built from transformers (LLaVA's way: a two-layer projector, then a Llama that reads
visual tokens and text in one sequence), with as many parameters as ours within 5 %. Both read the same features of the
frozen encoder, whose cost is the same for both and is not counted. Each point is a process of its own, so that its peak
memory is its own; rounds of the two alternate. Writes bench/results/frames.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fair import RESULTS, ROUNDS, clean_seconds, write
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from xgenvideo import recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.infer.cache import DecodingCache
from xgenvideo.models.video_lm import build_model

FRAMES = (8, 16, 32, 64, 128, 256, 512)
PATCHES, TEXT, NEW_TOKENS = 16, 64, 32
OURS, PEER = "latents", "tokens in the sequence"


@dataclass(frozen=True)
class Side:
    """One of the two. `train` does forward and backward of one pair, `prefill` reads the video, `decode` writes."""

    parameters: int
    train: Callable[[], object]
    language_model: Callable[[], object]
    prefill: Callable[[], Any]
    decode: Callable[[Any], object]


def config_for(frames: int) -> RunConfig:
    """A decoder of width 256 and 8 + 2 blocks, 64 queries."""
    return override(
        recipes.find("tiny"),
        [
            *("model.decoder.width=256", "model.decoder.depth=8", "model.decoder.heads=8", "model.decoder.kv_heads=4"),
            *("model.decoder.mlp=704", "model.resampler.queries=64", f"model.resampler.frame_slots={max(64, frames)}"),
            f"data.frames={frames}",
        ],
    )


def ours(frames: int) -> Side:
    """Resampler, then gated cross-attention to the latents."""
    config = config_for(frames)
    model = build_model(config)
    features = torch.randn(1, frames, PATCHES, config.model.vision.width)
    pts, mask = torch.arange(frames)[None] / 2.0, torch.ones(1, frames, dtype=torch.bool)
    tokens = torch.randint(4, 1000, (1, TEXT))
    positions, documents = torch.arange(TEXT)[None], torch.zeros(1, TEXT, dtype=torch.long)
    sees = torch.ones(1, TEXT, dtype=torch.bool)

    def language(latents: Tensor) -> Tensor:
        logits = model.logits(tokens, positions, documents, latents, sees)
        return functional.cross_entropy(logits[0, :-1], tokens[0, 1:])

    def train() -> None:
        language(model.latents(features, pts, mask)).backward()
        model.zero_grad(set_to_none=True)

    with torch.no_grad():
        fixed = model.latents(features, pts, mask)

    def language_model() -> None:
        language(fixed.requires_grad_()).backward()
        model.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def prefill() -> DecodingCache:
        cache = DecodingCache(model.decoder, model.latents(features, pts, mask), [0], TEXT + NEW_TOKENS)
        cache.start(tokens.tolist())
        return cache

    @torch.inference_mode()
    def decode(cache: DecodingCache) -> None:
        for _ in range(NEW_TOKENS):
            cache.step([5])

    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Side(trained, train, language_model, prefill, decode)


def peer(frames: int) -> Side:
    """Every patch feature as a token before the text."""
    config = config_for(frames)
    decoder, width = config.model.decoder, config.model.vision.width
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=decoder.vocab,
            hidden_size=decoder.width,
            intermediate_size=decoder.mlp,
            num_hidden_layers=decoder.depth + 3,  # as many parameters as our cross blocks and resampler add
            num_attention_heads=decoder.heads,
            num_key_value_heads=decoder.kv_heads,
            head_dim=decoder.head_size,
            max_position_embeddings=frames * PATCHES + TEXT + NEW_TOKENS,
            tie_word_embeddings=False,
        )
    )
    projector = nn.Sequential(nn.Linear(width, decoder.width), nn.GELU(), nn.Linear(decoder.width, decoder.width))
    features = torch.randn(1, frames * PATCHES, width)
    tokens = torch.randint(4, 1000, (1, TEXT))

    def sequence() -> Tensor:
        return torch.cat([projector(features), llama.model.embed_tokens(tokens)], dim=1)

    def train() -> None:
        hidden = llama.model(inputs_embeds=sequence(), use_cache=False).last_hidden_state[:, -TEXT:]
        functional.cross_entropy(llama.lm_head(hidden)[0, :-1], tokens[0, 1:]).backward()
        llama.zero_grad(set_to_none=True)
        projector.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def prefill() -> Any:
        return llama.model(inputs_embeds=sequence(), use_cache=True).past_key_values

    @torch.inference_mode()
    def decode(cache: Any) -> None:
        for _ in range(NEW_TOKENS):
            llama(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)

    trained = sum(parameter.numel() for part in (llama, projector) for parameter in part.parameters())
    return Side(trained, train, train, prefill, decode)


SIDES: dict[str, Callable[[int], Side]] = {OURS: ours, PEER: peer}


def point(name: str, frames: int, rounds: int) -> dict[str, Any]:
    """One side at one number of frames: medians of seconds, and how much memory its process came to need."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    side = SIDES[name](frames)
    taken: dict[str, list[float]] = {"train": [], "language_model": [], "prefill": [], "decode": []}
    for number in range(rounds + 1):
        found = {
            "train": clean_seconds(side.train),
            "language_model": clean_seconds(side.language_model),
            "prefill": clean_seconds(side.prefill),
            "decode": clean_seconds(side.decode, side.prefill),
        }
        for what, seconds in found.items():
            if number:
                taken[what].append(seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures: dict[str, Any] = {f"{what}_seconds": statistics.median(values) for what, values in taken.items()}
    return figures | {"added_mb": (peak - before) / 1024, "parameters": side.parameters}


def measure(rounds: int, most: int) -> list[dict[str, Any]]:
    """Every point in a process of its own; the two sides alternate, and each is measured in two such processes."""
    rows: list[dict[str, Any]] = []
    for frames in (count for count in FRAMES if count <= most):
        halves: dict[str, list[dict[str, Any]]] = {OURS: [], PEER: []}
        for _ in range(2):
            for name, found in halves.items():
                command = [sys.executable, __file__, "--point", name, "--frames", str(frames)]
                done = subprocess.run([*command, "--rounds", str(rounds)], capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
        row: dict[str, Any] = {"frames": frames}
        for name, found in halves.items():
            row[name] = {key: min(one[key] for one in found) for key in found[0]}
        rows.append(row)
        told = "  ".join(
            f"{name}: train {row[name]['train_seconds']:.3f} s, decode {row[name]['decode_seconds']:.3f} s, "
            f"{row[name]['added_mb']:.0f} MB"
            for name in SIDES
        )
        print(f"{frames:4} frames  {told}", flush=True)
    return rows


def main() -> None:
    """Measure one point, or all of them and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--point", choices=SIDES)
    parser.add_argument("--frames", type=int, default=max(FRAMES))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "frames.json")
    options = parser.parse_args()
    if options.point:
        print(json.dumps(point(options.point, options.frames, options.rounds)))
        return
    rows = measure(options.rounds, options.frames)
    crossing = next((row["frames"] for row in rows if row[PEER]["train_seconds"] > row[OURS]["train_seconds"]), None)
    last, first = rows[-1], rows[0]
    flat = last[OURS]["language_model_seconds"] / first[OURS]["language_model_seconds"]
    print(
        f"crossing at {crossing} frames; our language model costs {flat:.2f} times as much at {last['frames']} frames"
    )
    about = {
        "frames_from_which_ours_trains_faster": crossing,
        "our_language_model_cost_last_over_first": flat,
        "patches_a_frame": PATCHES,
        "text_tokens": TEXT,
        "new_tokens": NEW_TOKENS,
        "rounds": options.rounds,
        "seconds": "of undisturbed rounds, one thread, the smaller of two processes' medians",
    }
    write(options.out, {"about": about, "rows": rows}, "transformers")


if __name__ == "__main__":
    main()
