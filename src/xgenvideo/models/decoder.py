"""Causal decoder: a lower half that never sees video, an upper half with gated cross-attention over the latents."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from xgenvideo.config import DecoderConfig
from xgenvideo.models.layers import SwiGLU, attend, rotary, rotate, text_mask


class Decoder(nn.Module):
    """Token ids in, hidden states after the lower half and logits after the upper half out.

    Layers have global numbers as names, so that a pipeline stage keeps the names of the layers it holds.
    """

    def __init__(self, config: DecoderConfig, latent_width: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleDict({str(i): SelfBlock(config) for i in range(config.depth)})
        self.cross = nn.ModuleDict({str(i): CrossBlock(config, latent_width) for i in config.cross_before})
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab, bias=False)

    def lower(self, tokens: Tensor, positions: Tensor, documents: Tensor) -> Tensor:
        """tokens, positions, documents [B T] -> hidden [B T D] of the unimodal lower half."""
        x: Tensor = self.embedding(tokens)
        cos, sin = rotary(positions, self.config)
        mask = text_mask(documents, x.dtype)
        for i in range(self.config.lower_layers):
            x = self.layers[str(i)](x, cos, sin, mask)
        return x

    def upper(
        self, x: Tensor, positions: Tensor, documents: Tensor, latents: Tensor | None, sees_video: Tensor
    ) -> Tensor:
        """hidden x [B T D], latents [B Q Dr] or None, sees_video [B T] -> normed hidden [B T D], ready for `head`."""
        cos, sin = rotary(positions, self.config)
        mask = text_mask(documents, x.dtype)
        for i in range(self.config.lower_layers, self.config.depth):
            if latents is not None and str(i) in self.cross:
                x = self.cross[str(i)](x, latents, sees_video)
            x = self.layers[str(i)](x, cos, sin, mask)
        result: Tensor = self.norm(x)
        return result


class SelfBlock(nn.Module):
    """Pre-norm causal self-attention with rotary positions and grouped keys, then SwiGLU: Llama's block.

    Qwen2's has biases of query, key and value, Qwen3's a norm of each head's query and key.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        inner, grouped, biased = (
            config.heads * config.head_size,
            config.kv_heads * config.head_size,
            config.attention_biases,
        )
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.q = nn.Linear(config.width, inner, bias=biased)
        self.k = nn.Linear(config.width, grouped, bias=biased)
        self.v = nn.Linear(config.width, grouped, bias=biased)
        normed = config.query_key_norm
        self.q_norm = nn.RMSNorm(config.head_size, eps=config.norm_eps) if normed else nn.Identity()
        self.k_norm = nn.RMSNorm(config.head_size, eps=config.norm_eps) if normed else nn.Identity()
        self.out = nn.Linear(inner, config.width, bias=False)
        self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGLU(config.width, config.mlp)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | BlockMask | None) -> Tensor:
        """x [B T D], cos and sin [B 1 T hd], mask of `text_mask` or `block_mask` -> [B T D]."""
        normed = self.attention_norm(x)
        q, k, v = (
            rearrange(part, "b t (h e) -> b h t e", e=self.head_size)
            for part in (self.q(normed), self.k(normed), self.v(normed))
        )
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        x = x + self.out(attend(q, k, v, mask, causal=mask is None))
        result: Tensor = x + self.mlp(self.mlp_norm(x))
        return result


class Gate(nn.Module):
    """tanh of one learned scalar that starts at zero: a block behind it starts as the identity (Flamingo)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """x [.. D] -> tanh(weight) * x."""
        return x * self.weight.tanh()


class CrossBlock(nn.Module):
    """Gated cross-attention over the latents, then a gated SwiGLU; tokens that may not see video pass unchanged."""

    def __init__(self, config: DecoderConfig, latent_width: int) -> None:
        super().__init__()
        self.head_size = config.head_size
        inner, grouped = config.heads * config.head_size, config.kv_heads * config.head_size
        self.attention_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.q = nn.Linear(config.width, inner, bias=False)
        self.k = nn.Linear(latent_width, grouped, bias=False)
        self.v = nn.Linear(latent_width, grouped, bias=False)
        self.q_norm = nn.RMSNorm(config.head_size, eps=config.norm_eps)
        self.k_norm = nn.RMSNorm(config.head_size, eps=config.norm_eps)
        self.out = nn.Linear(inner, config.width, bias=False)
        self.attention_gate = Gate()
        self.mlp_norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = SwiGLU(config.width, config.mlp)
        self.mlp_gate = Gate()

    def read_latents(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """latents [B Q Dr] -> keys and values [B K Q hd]. They do not depend on the text: once a video is enough."""
        k, v = (
            rearrange(part, "b q (h e) -> b h q e", e=self.head_size) for part in (self.k(latents), self.v(latents))
        )
        return self.k_norm(k), v

    def forward(self, x: Tensor, latents: Tensor, sees_video: Tensor) -> Tensor:
        """x [B T D], latents [B Q Dr], sees_video [B T] -> [B T D]."""
        return self.attend_to(x, self.read_latents(latents), sees_video)

    def attend_to(self, x: Tensor, memory: tuple[Tensor, Tensor], sees_video: Tensor) -> Tensor:
        """As `forward`, with the keys and values that `read_latents` gave."""
        # A gate times what a token may see is one number a token.
        may_see = sees_video[..., None].to(x.dtype)
        q = rearrange(self.q(self.attention_norm(x)), "b t (h e) -> b h t e", e=self.head_size)
        x = x + self.attention_gate(may_see) * self.out(attend(self.q_norm(q), *memory, None))
        result: Tensor = x + self.mlp_gate(may_see) * self.mlp(self.mlp_norm(x))
        return result
