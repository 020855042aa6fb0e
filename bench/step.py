"""The decoder's training step against transformers' Mllama and Idefics of equal dimensions, one thread.

Run: make bench-step. Each side reads the same number of latents through as many cross-attention blocks beside as many
self-attention blocks of the same width, computes the next-token loss, goes backward and steps a fused AdamW. Rounds
alternate (fair.py); all as the libraries give it, then with the blocks of both compiled by torch.compile. Writes
bench/results/step.json.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from fair import RESULTS, ROUNDS, alternate, quartiles, write
from torch import Tensor, nn
from transformers import IdeficsConfig, IdeficsForVisionText2Text, MllamaForCausalLM
from transformers.models.idefics.configuration_idefics import IdeficsVisionConfig
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from xgenvideo import recipes
from xgenvideo.config import override
from xgenvideo.models.video_lm import build_model
from xgenvideo.objectives import next_token_loss

WIDTH, DEPTH, CROSS, HEADS, MLP, VOCAB, QUERIES = 256, 8, 2, 8, 704, 4096, 64
PAIRS, TEXT = 4, 256


@dataclass(frozen=True)
class Side:
    """A model's step, how many parameters it trains, and its blocks."""

    step: Callable[[], float]
    parameters: int
    blocks: list[nn.Module]

    def compiled(self) -> "Side":
        """The same model, every block compiled from now on."""
        for block in self.blocks:
            block.compile()
        return self


def stepping(module: nn.Module, blocks: list[nn.Module], loss: Callable[[], Tensor]) -> Side:
    """Forward, backward, optimizer."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    return Side(step, sum(parameter.numel() for parameter in trained), blocks)


def inputs() -> tuple[Tensor, Tensor]:
    """Tokens [B T] and latents [B Q D], the same for every side."""
    random = torch.Generator().manual_seed(0)
    return (
        torch.randint(4, VOCAB, (PAIRS, TEXT), generator=random),
        torch.randn(PAIRS, QUERIES, WIDTH, generator=random),
    )


def ours(kv_heads: int) -> Side:
    """Our decoder, one document a row, which it finds out by itself; the may-see mask is on."""
    config = override(
        recipes.find("tiny"),
        [
            *(f"model.decoder.width={WIDTH}", f"model.decoder.depth={DEPTH}", f"model.decoder.heads={HEADS}"),
            *(f"model.decoder.kv_heads={kv_heads}", f"model.decoder.mlp={MLP}", f"model.decoder.vocab={VOCAB}"),
            *(f"model.decoder.cross_blocks={CROSS}", f"model.resampler.width={WIDTH}"),
            f"model.resampler.queries={QUERIES}",
        ],
    )
    model = build_model(config)
    tokens, latents = inputs()
    positions = torch.arange(TEXT).expand(PAIRS, TEXT)
    targets = torch.cat([tokens[:, 1:], tokens.new_full((PAIRS, 1), -100)], dim=1)
    documents, sees = torch.zeros(PAIRS, TEXT, dtype=torch.long), torch.ones(PAIRS, TEXT, dtype=torch.bool)

    def loss() -> Tensor:
        total, count = next_token_loss(model.logits(tokens, positions, documents, latents, sees), targets)
        return total / count

    decoder = model.decoder
    return stepping(decoder, [*decoder.layers.values(), *decoder.cross.values()], loss)


def mllama() -> Side:
    """transformers' Mllama: cross-attention layers count among its layers."""
    model = MllamaForCausalLM(
        MllamaTextConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_hidden_layers=DEPTH + CROSS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS // 2,
            intermediate_size=MLP,
            cross_attention_layers=[5, 8],
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            max_position_embeddings=TEXT,
            pad_token_id=0,
        )
    )
    tokens, latents = inputs()
    mask = torch.ones(PAIRS, 1, TEXT, 1)

    def loss() -> Tensor:
        made = model(
            input_ids=tokens,
            cross_attention_states=latents,
            full_text_row_masked_out_mask=mask,
            labels=tokens,
            use_cache=False,
        )
        value: Tensor = made.loss
        return value

    return stepping(model, list(model.model.layers), loss)


def idefics() -> Side:
    """transformers' Idefics: a gated cross-attention layer before every fourth layer; no grouped heads."""
    vision = IdeficsVisionConfig(
        embed_dim=WIDTH,
        image_size=16,
        patch_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    model = IdeficsForVisionText2Text(
        IdeficsConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=MLP,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            cross_layer_interval=DEPTH // CROSS,
            qk_layer_norms=True,
            freeze_text_layers=False,
            vision_config=vision.to_dict(),
            max_position_embeddings=TEXT,
        )
    )
    model.model.vision_model.requires_grad_(False)
    tokens, latents = inputs()
    mask = torch.ones(PAIRS, TEXT, 1, dtype=torch.long)

    def loss() -> Tensor:
        made = model(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            image_encoder_embeddings=latents[:, None],
            image_attention_mask=mask,
            labels=tokens,
            use_cache=False,
        )
        value: Tensor = made.loss
        return value

    return stepping(model, [*model.model.layers, *model.model.gated_cross_attn_layers], loss)


def compare(sides: dict[str, Side], rounds: int) -> dict[str, object]:
    """Medians of each side, and the ratio round by round."""
    taken = alternate({name: side.step for name, side in sides.items()}, rounds)
    mine, theirs = taken.values()
    ratios = quartiles(theirs, mine)
    medians = {name: round(statistics.median(values), 4) for name, values in taken.items()}
    parameters = {name: side.parameters for name, side in sides.items()}
    print(f"{medians}, parameters {parameters}: as fast as the other, times: {ratios}")
    return {"median_seconds": medians, "parameters": parameters, "times_as_fast_quartiles": ratios}


def main() -> None:
    """Compare with both and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "step.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = {
        "mllama": compare({"xgenvideo": ours(HEADS // 2), "mllama": mllama()}, options.rounds),
        "idefics": compare({"xgenvideo": ours(HEADS), "idefics": idefics()}, options.rounds),
    }
    # Afterwards, as what is compiled in a process changes nothing that was measured before.
    sides = {"xgenvideo": ours(HEADS // 2).compiled(), "mllama": mllama().compiled()}
    rows["mllama, all blocks compiled"] = compare(sides, options.rounds)
    sides = {"xgenvideo": ours(HEADS).compiled(), "idefics": idefics().compiled()}
    rows["idefics, all blocks compiled"] = compare(sides, options.rounds)
    about = {
        "pairs": PAIRS,
        "text_tokens": TEXT,
        "latents": QUERIES,
        "width": WIDTH,
        "blocks": f"{DEPTH} self-attention, {CROSS} cross-attention",
        "rounds": options.rounds,
    }
    write(options.out, {"about": about, "rows": rows}, "transformers")


if __name__ == "__main__":
    main()
