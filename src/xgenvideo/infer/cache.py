"""What decoding remembers: the video's keys and values, read once, and those of the text so far.

It runs the decoder's own blocks: a test holds its logits against those of the whole text computed again.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from xgenvideo.infer.one_token import Memory, TokenBlock, TokenCross, normalise
from xgenvideo.models.decoder import CrossBlock, Decoder, SelfBlock
from xgenvideo.models.layers import attend, document_mask, rotary, rotate


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
        self._one = {i: TokenBlock(block) for i, block in self._layers.items()}
        self._one_cross = {i: TokenCross(block) for i, block in self._cross.items()}
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
        return self._read_prompts(torch.tensor(padded, device=self.device), mask)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Add one token to each text; logits [B V] of the next."""
        place = self._used
        mask = self._real[..., : place + 1] if self._padded else None
        cos, sin = self._cos[:, :, place], self._sin[:, :, place]
        x: Tensor = self.decoder.embedding(torch.tensor(tokens, device=self.device))
        for i, block in self._one.items():
            if i in self._seen:
                x = self._one_cross[i](x, self._seen[i])
            x = block(x, self._text[i], place, cos, sin, mask)
        self._used += 1
        return self._logits(x)

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

    def _read_prompts(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """tokens [B T], the first ones, mask [B 1 T T] -> logits [B V] after the last."""
        count = tokens.shape[1]
        cos, sin = self._cos[:, :, :count], self._sin[:, :, :count]
        x: Tensor = self.decoder.embedding(tokens)
        sees_video = torch.ones_like(tokens, dtype=torch.bool)
        for i, block in self._layers.items():
            if i in self._seen:
                x = self._cross[i].attend_to(x, self._seen[i], sees_video)
            x = _remember(block, self._text[i], x, cos, sin, mask)
        self._used = count
        return self._logits(x[:, -1])

    def _logits(self, x: Tensor) -> Tensor:
        """x [B D] -> [B V]."""
        logits: Tensor = self.decoder.head(normalise(self.decoder.norm, x))
        return logits


def _remember(block: SelfBlock, memory: Memory, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
    """`SelfBlock.forward` of the first T tokens, their keys and values kept in the memory; x [B T D] -> [B T D]."""
    normed = block.attention_norm(x)
    q, k, v = (
        part.unflatten(-1, (-1, block.head_size)).transpose(1, 2)
        for part in (block.q(normed), block.k(normed), block.v(normed))
    )
    keys, values = (part[:, :, : x.shape[1]] for part in memory)
    keys[:], values[:] = rotate(block.k_norm(k), cos, sin), v
    x = x + block.out(attend(rotate(block.q_norm(q), cos, sin), keys, values, mask))
    result: Tensor = x + block.mlp(block.mlp_norm(x))
    return result
