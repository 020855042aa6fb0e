"""What decoding remembers: the video's keys and values, read once, and those of the text so far.

It runs the decoder's own blocks: a test holds its logits against those of the whole text computed again.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from xgenvideo.models.decoder import CrossBlock, Decoder, SelfBlock
from xgenvideo.models.layers import attend, document_mask, rotary, rotate

Memory = tuple[Tensor, Tensor]


class DecodingCache:
    """Keys and values of B texts, each about its own video, with room for `room` tokens a text.

    Texts of unequal length are padded on the left, so that every text's next token has the same column.
    """

    def __init__(self, decoder: Decoder, latents: Tensor | None, videos: Sequence[int], room: int) -> None:
        """latents [V Q Dr] or None for text alone; text i is about video `videos[i]`."""
        config, weight = decoder.config, decoder.embedding.weight
        self.decoder = decoder
        self.device = weight.device
        self._layers = {i: cast(SelfBlock, block) for i, block in decoder.layers.items()}
        self._cross = {i: cast(CrossBlock, block) for i, block in decoder.cross.items()}
        self._read = {} if latents is None else {i: block.read_latents(latents) for i, block in self._cross.items()}
        self._videos: list[int] = []
        self._seen: dict[str, Memory] = {}
        self._see(list(videos))
        shape = (len(videos), config.kv_heads, room, config.head_size)
        self._text = {i: (weight.new_zeros(shape), weight.new_zeros(shape)) for i in self._layers}
        self._padding = torch.zeros(len(videos), dtype=torch.long, device=self.device)
        self._room, self._used = room, 0
        self._place()

    def start(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts, once; logits [B V] of the token after each."""
        assert self._used == 0, f"the cache already holds {self._used} tokens"
        longest = max(map(len, texts))
        padded = [[*[0] * (longest - len(text)), *text] for text in texts]
        self._padding = torch.tensor([longest - len(text) for text in texts], device=self.device)
        self._place()
        real = self._real[:, 0, 0, :longest].expand(len(texts), -1)
        # Padding is a document of its own: no token of a text looks at it.
        mask = document_mask(torch.where(real, 0, -1))
        return self._run(torch.tensor(padded, device=self.device), mask)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Add one token to each text; logits [B V] of the next."""
        mask = self._real[..., : self._used + 1] if self._padded else None
        return self._run(torch.tensor(tokens, device=self.device)[:, None], mask)

    def keep(self, rows: Sequence[int]) -> None:
        """From now on text i is what text `rows[i]` was: texts that ended are left out, beams are copied."""
        if list(rows) == list(range(len(self._padding))):
            return
        chosen = torch.tensor(rows, dtype=torch.long, device=self.device)
        self._text = {i: (keys[chosen], values[chosen]) for i, (keys, values) in self._text.items()}
        self._padding = self._padding[chosen]
        self._place()
        self._see([self._videos[row] for row in rows])

    def _place(self) -> None:
        """Rotary positions of all columns, which count from each text's first token, and which columns are text."""
        config = self.decoder.config
        self._padded = bool(self._padding.any())
        columns = torch.arange(self._room, device=self.device)
        # Texts without padding share one row.
        positions = columns - self._padding[:, None] if self._padded else columns[None]
        self._real = (positions >= 0)[:, None, None]
        self._cos, self._sin = rotary(positions.clamp(min=0), config)

    def _see(self, videos: list[int]) -> None:
        """Line up each text's video; texts about one video share its keys and values without a copy."""
        if videos == self._videos:
            return
        self._videos = videos
        for i, memory in self._read.items():
            if len(set(videos)) == 1:
                keys, values = (part[videos[:1]].expand(len(videos), -1, -1, -1) for part in memory)
            else:
                keys, values = (part[videos] for part in memory)
            self._seen[i] = keys, values

    def _run(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """tokens [B T] after those already read, mask [B 1 T used+T] -> logits [B V] after the last."""
        count = tokens.shape[1]
        cos, sin = (part[:, :, self._used : self._used + count] for part in (self._cos, self._sin))
        x: Tensor = self.decoder.embedding(tokens)
        sees_video = torch.ones_like(tokens, dtype=torch.bool)
        for i, block in self._layers.items():
            if i in self._seen:
                x = self._cross[i].attend_to(x, self._seen[i], sees_video)
            x = self._self_block(block, self._text[i], x, cos, sin, mask)
        self._used += count
        logits: Tensor = self.decoder.head(self.decoder.norm(x[:, -1]))
        return logits

    def _self_block(
        self, block: SelfBlock, memory: Memory, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None
    ) -> Tensor:
        """`SelfBlock.forward` whose earlier keys and values are remembered; x [B T D] -> [B T D]."""
        normed = block.attention_norm(x)
        # Views, not einops: at one token a step, a small model's time goes into calls.
        q, k, v = (
            part.unflatten(-1, (-1, block.head_size)).transpose(1, 2)
            for part in (block.q(normed), block.k(normed), block.v(normed))
        )
        keys, values = memory
        end = self._used + x.shape[1]
        keys[:, :, self._used : end] = rotate(block.k_norm(k), cos, sin)
        values[:, :, self._used : end] = v
        x = x + block.out(_attend(rotate(block.q_norm(q), cos, sin), keys[:, :, :end], values[:, :, :end], mask))
        result: Tensor = x + block.mlp(block.mlp_norm(x))
        return result


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attend`; for one token the heads that share a key stand as its queries, so that no key is repeated."""
    batch, heads, count, size = q.shape
    if count > 1:
        return attend(q, k, v, mask)
    grouped = q.reshape(batch, k.shape[1], heads // k.shape[1], size)
    out = functional.scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
    return out.reshape(batch, 1, heads * size)
