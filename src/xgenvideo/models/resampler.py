"""Spatio-temporal queries: compress the patch features of up to 64 frames into a fixed number of latents."""

import math

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from xgenvideo.config import ResamplerConfig

TIME_SCALE = 2.0  # of content of unit variance: half the periods are too long to differ within a short clip
SHORTEST_PERIOD, LONGEST_PERIOD = 1.0, 8192.0  # seconds: two samples at 2 FPS, and over two hours


class Resampler(nn.Module):
    """Perceiver resampler (Flamingo, arXiv 2204.14198, section 3.1.1) whose frames carry their real time in seconds."""

    def __init__(self, config: ResamplerConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.input_norm = nn.LayerNorm(features)
        self.input = nn.Linear(features, config.width, bias=False)
        self.slots = nn.Parameter(torch.empty(config.frame_slots, config.width))
        self.queries = nn.Parameter(torch.empty(config.queries, config.width))
        self.layers = nn.ModuleList(ResamplerLayer(config.width, config.heads) for _ in range(config.depth))
        self.output_norm = nn.LayerNorm(config.width)

    def forward(self, features: Tensor, pts: Tensor, frame_mask: Tensor) -> Tensor:
        """features [B F P Wv], pts [B F] seconds, frame_mask [B F] True for real frames -> latents [B Q D]."""
        batch, frames, patches, _ = features.shape
        media = self.input(self.input_norm(features))
        slots = self.slots[:frames]
        seconds = pts if self.config.time == "real" else torch.arange(frames, device=pts.device).expand(batch, frames)
        times = TIME_SCALE * fourier(seconds, self.config.width).to(media.dtype)
        media = media + (times + slots)[:, :, None]
        media = rearrange(media, "b f p d -> b (f p) d")
        # The queries see each other as well as the frames; padding frames are never seen.
        visible = repeat(frame_mask, "b f -> b (f p)", p=patches)
        visible = functional.pad(visible, (0, self.config.queries), value=True)[:, None, None]
        latents = self.queries.expand(batch, -1, -1)
        for layer in self.layers:
            latents = layer(latents, media, visible)
        result: Tensor = self.output_norm(latents)
        return result


class ResamplerLayer(nn.Module):
    """One cross-attention of the latents over [media; latents], then a feed-forward layer, both pre-norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.media_norm, self.latent_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, latents: Tensor, media: Tensor, visible: Tensor) -> Tensor:
        """latents [B Q D], media [B S D], visible [B 1 1 S+Q] -> latents [B Q D]."""
        normed = self.latent_norm(latents)
        source = torch.cat((self.media_norm(media), normed), dim=1)
        q, k, v = (
            rearrange(part, "b s (h e) -> b h s e", h=self.heads)
            for part in (self.q(normed), self.k(source), self.v(source))
        )
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        latents = latents + self.out(rearrange(attended, "b h q e -> b q (h e)"))
        result: Tensor = latents + self.down(functional.gelu(self.up(self.mlp_norm(latents))))
        return result


class AttentionPool(nn.Module):
    """One learned query reads all latents: the video embedding before its projection (CoCa, arXiv 2205.01917)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.empty(width))
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(width)

    def forward(self, latents: Tensor) -> Tensor:
        """latents [B Q D] -> [B D]."""
        query = self.query.expand(latents.shape[0], 1, -1)
        q, k, v = (
            rearrange(part, "b s (h e) -> b h s e", h=self.heads)
            for part in (self.q(query), self.k(latents), self.v(latents))
        )
        pooled = rearrange(functional.scaled_dot_product_attention(q, k, v), "b h 1 e -> b (h e)")
        result: Tensor = self.norm(self.out(pooled))
        return result


def fourier(seconds: Tensor, width: int) -> Tensor:
    """Fourier features [B F width] of times [B F]: sines and cosines at periods from 1 s to 2.3 h, evenly in log."""
    wide = seconds.to(torch.promote_types(seconds.dtype, torch.float32))
    steps = torch.linspace(0, 1, width // 2, device=seconds.device, dtype=wide.dtype)
    periods = torch.exp(math.log(SHORTEST_PERIOD) + steps * math.log(LONGEST_PERIOD / SHORTEST_PERIOD))
    angles = 2 * math.pi * wide[..., None] / periods
    return torch.cat((angles.sin(), angles.cos()), dim=-1)
