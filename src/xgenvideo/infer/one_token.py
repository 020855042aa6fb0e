"""One token through the decoder's blocks, in as few calls as it takes.

At one token a step a small model's time goes into calls, not into arithmetic: layers that read the same input become
one product, a residual is added by the product itself, and weights are turned once. What comes out is what the blocks
compute, to rounding.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from xgenvideo.models.decoder import CrossBlock, SelfBlock
from xgenvideo.models.layers import SwiGLU

Memory = tuple[Tensor, Tensor]
# Up to this many numbers a joined copy of the weights is cheap (16 MB in float32); beyond, products outweigh calls.
JOINED_NUMBERS = 4_000_000


class Joined:
    """Linear layers that read the same input: x [B D] -> their outputs side by side [B sum]."""

    def __init__(self, *layers: nn.Linear) -> None:
        weights: tuple[Tensor, ...] = tuple(layer.weight for layer in layers)
        if sum(weight.numel() for weight in weights) <= JOINED_NUMBERS:
            weights = (torch.cat(weights),)
        self.matrices = [weight.t() for weight in weights]
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None

    def __call__(self, x: Tensor) -> Tensor:
        """x [B D] -> [B sum]."""
        parts = [torch.mm(x, matrix) for matrix in self.matrices]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return out if self.bias is None else out + self.bias


class Feed:
    """A SwiGLU layer whose gate and input are one product: x [B D] -> [B D]."""

    def __init__(self, layer: SwiGLU) -> None:
        self.both = Joined(layer.gate, layer.up)
        self.down = layer.down.weight.t()

    def hidden(self, x: Tensor) -> Tensor:
        """x [B D] -> what `down` reads [B F]."""
        gate, up = self.both(x).chunk(2, dim=-1)
        return functional.silu(gate) * up


class TokenBlock:
    """A `SelfBlock` for one token a text."""

    def __init__(self, block: SelfBlock) -> None:
        self.block = block
        self.qkv = Joined(block.q, block.k, block.v)
        self.out = block.out.weight.t()
        self.feed = Feed(block.mlp)
        self.queries = block.q.out_features // block.head_size

    def __call__(self, x: Tensor, memory: Memory, place: int, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """The token at column `place` of the memory, keys and values [B K room hd], which takes it in.

        x [B D], cos and sin [B 1 hd], mask [B 1 1 place+1] or None -> [B D].
        """
        block, (keys, values) = self.block, memory
        heads = self.qkv(normalise(block.attention_norm, x)).unflatten(-1, (-1, block.head_size))
        q, k, v = heads.split((self.queries, keys.shape[1], keys.shape[1]), dim=1)
        if isinstance(block.q_norm, nn.Identity):
            turned = _rotate(heads[:, : -keys.shape[1]], cos, sin)
            q, k = turned[:, : self.queries], turned[:, self.queries :]
        else:
            q, k = _rotate(block.q_norm(q), cos, sin), _rotate(block.k_norm(k), cos, sin)
        keys[:, :, place], values[:, :, place] = k, v
        end = place + 1
        x = torch.addmm(x, attend_one(q, keys[:, :, :end], values[:, :, :end], mask), self.out)
        return torch.addmm(x, self.feed.hidden(normalise(block.mlp_norm, x)), self.feed.down)


class TokenCross:
    """A `CrossBlock` for one token a text, which sees the video."""

    def __init__(self, block: CrossBlock) -> None:
        self.block = block
        self.query, self.out = block.q.weight.t(), block.out.weight.t()
        self.feed = Feed(block.mlp)
        self.gates = block.attention_gate.weight.tanh(), block.mlp_gate.weight.tanh()

    def __call__(self, x: Tensor, memory: Memory) -> Tensor:
        """x [B D], keys and values of the video [B K Q hd] -> [B D]."""
        block = self.block
        q = torch.mm(normalise(block.attention_norm, x), self.query).unflatten(-1, (-1, block.head_size))
        x = torch.addcmul(x, torch.mm(attend_one(normalise(block.q_norm, q), *memory, None), self.out), self.gates[0])
        fed = torch.mm(self.feed.hidden(normalise(block.mlp_norm, x)), self.feed.down)
        return torch.addcmul(x, fed, self.gates[1])


def attend_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of one token, q [B H hd], k and v [B K S hd] -> [B H*hd].

    The heads that share a key stand as its queries, so that no key is repeated.
    """
    batch, heads, size = q.shape
    grouped = q.reshape(batch, k.shape[1], heads // k.shape[1], size)
    return functional.scaled_dot_product_attention(grouped, k, v, attn_mask=mask).reshape(batch, heads * size)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`layers.rotate` of one token's heads x [B H hd], cos and sin [B 1 hd]."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin).to(x.dtype)


def normalise(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """The norm; on a CPU in single precision written out, where torch's own takes twice the calls (2.13)."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        result: Tensor = norm(x)
        return result
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True).add_(norm.eps or 0.0)) * norm.weight
