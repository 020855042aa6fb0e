"""The vision transformer of CLIP (Radford et al. 2021, arXiv 2103.00020); tensors have the names of its checkpoints."""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from xgenvideo.config import VisionConfig
from xgenvideo.models.layers import attend


class VisionTransformer(nn.Module):
    """Pixels in, features of the class token and of every patch out.

    The norm behind the last layer is part of every checkpoint; it is for the class token alone, which nothing reads.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = PatchEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width)  # spelt so in every published checkpoint
        self.encoder = VisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N 3 S S] -> [N 1+P Wv], the class token first."""
        features: Tensor = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return features


class VisionEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.depth))

    def forward(self, x: Tensor) -> Tensor:
        """x [N T Wv] -> [N T Wv]."""
        for layer in self.layers:
            x = layer(x)
        return x


class PatchEmbeddings(nn.Module):
    """Patches as tokens behind a class token, with learnt places."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patches = (config.image_size // config.patch) ** 2
        self.class_embedding = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.position_embedding = nn.Embedding(patches + 1, config.width)
        nn.init.normal_(self.patch_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [N 3 S S] -> [N 1+P Wv]."""
        patches = rearrange(self.patch_embedding(pixels), "n w y x -> n (y x) w")
        first = self.class_embedding.expand(len(patches), 1, -1)
        return torch.cat((first, patches), dim=1) + self.position_embedding.weight


class VisionLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.self_attn = VisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.width)
        self.mlp = VisionFeedForward(config)
        self.layer_norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """x [N T Wv] -> [N T Wv]."""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class VisionAttention(nn.Module):
    """Every token sees every token of its frame. Starting values as CLIP's: smaller with depth, where they add up."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.q_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            _start(projection, config.width**-0.5 * (2 * config.depth) ** -0.5)
        _start(self.out_proj, config.width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [N T Wv] -> [N T Wv]."""
        parts = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (rearrange(part, "n t (h e) -> n h t e", h=self.heads) for part in parts)
        out: Tensor = self.out_proj(attend(q, k, v, None))
        return out


class VisionFeedForward(nn.Module):
    """Two layers with an exact GELU between (OpenCLIP bigG; OpenAI's own CLIP approximates it)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp)
        self.fc2 = nn.Linear(config.mlp, config.width)
        _start(self.fc1, (2 * config.width) ** -0.5)
        _start(self.fc2, config.width**-0.5 * (2 * config.depth) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x [.. Wv] -> [.. Wv]."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


def _start(layer: nn.Linear, deviation: float) -> None:
    nn.init.normal_(layer.weight, std=deviation)
    nn.init.zeros_(layer.bias)
