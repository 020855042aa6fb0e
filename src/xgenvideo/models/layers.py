"""Norm, feed-forward, attention and rotary positions: what the decoder and its cross-attention blocks are made of."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from xgenvideo.config import DecoderConfig, RopeScaling


class SwiGLU(nn.Module):
    """Gated feed-forward layer, x [.. D] -> [.. D] (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [.. D] -> [.. D]."""
        result: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return result


def rotary(positions: Tensor, decoder: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B 1 T head_size] of positions [B T] for `rotate`, halves repeated (Llama's layout), at least
    float32; the sine's first half is negative.
    """
    wide = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    exponents = torch.arange(0, decoder.head_size, 2, device=positions.device, dtype=wide) / decoder.head_size
    frequencies = scaled(decoder.rope_theta**-exponents, decoder.rope_scaling)
    angles = positions[:, None, :, None].to(wide) * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Rotary frequencies [hd/2] for longer texts: slow ones divided by the factor, fast ones kept, smooth between.

    Llama 3.1's rule (transformers, `_compute_llama3_parameters`).
    """
    if scaling.factor == 1.0:
        return frequencies
    turns = scaling.original_positions * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x [B H T hd] (Su et al. 2021, arXiv 2104.09864)."""
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | BlockMask | None, causal: bool = False) -> Tensor:
    """Scaled dot-product attention, q [B H T hd], k and v [B K S hd] with K dividing H -> [B T H*hd].

    `mask` is True where a query may look, or what is added to the scores, or the blocks of `block_mask`; with `causal`
    it is None.
    """
    grouped = q.shape[1] != k.shape[1]
    if isinstance(mask, BlockMask):
        # On a GPU always compiled: alone here, or with the block that calls.
        fused = not q.is_cuda or torch.compiler.is_compiling()
        flex: Any = flex_attention if fused else _compiled(flex_attention)
        out: Tensor = flex(q, k, v, block_mask=mask, enable_gqa=grouped)
    else:
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped)
    return rearrange(out, "b h t e -> b t (h e)")


def text_mask(documents: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What causal self-attention over packed texts adds to its scores [B 1 T T], made once for all layers.

    None for rows of one document each, where plain causal attention is the same and half the work. Only a CPU looks:
    on a GPU the question would make the host wait.
    """
    if documents.device.type == "cpu" and bool((documents.diff(dim=1) <= 0).all() & (documents <= 0).all()):
        return None
    mask = document_mask(documents)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def block_mask(documents: Tensor) -> BlockMask:
    """What `document_mask` says, as blocks for FlexAttention: those that no token may see are passed over, and on a GPU
    no [T T] is held. The host does not wait.
    """
    length = documents.shape[1]

    def visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[row, query] == documents[row, key])

    create = _compiled(create_block_mask) if documents.is_cuda else create_block_mask
    made: BlockMask = create(visible, len(documents), None, length, length, device=documents.device)
    return made


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function)


def document_mask(documents: Tensor) -> Tensor:
    """[B 1 T T] boolean: causal and within one document. documents [B T] int; padding forms a document of its own."""
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    same = documents[:, :, None] == documents[:, None, :]
    return (same & causal)[:, None]
