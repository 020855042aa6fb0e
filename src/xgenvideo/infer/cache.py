"""What decoding remembers: the video's keys and values, read once, and those of the text so far.

It runs the decoder's own blocks, so the tokens are those of the whole text computed again at every step; a test holds it.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from xgenvideo.models.decoder import Decoder, SelfBlock
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
        self._read = {} if latents is None else {i: block.read_latents(latents) for i, block in decoder.cross.items()}
        self._videos: list[int] = []
        self._seen: dict[str, Memory] = {}
        self._see(list(videos))
        shape = (len(videos), config.kv_heads, room, config.head_size)
        self._text = {i: (weight.new_zeros(shape), weight.new_zeros(shape)) for i in decoder.layers}
        self._padding = torch.zeros(len(videos), dtype=torch.long, device=self.device)
        self._used = 0

    def start(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts, once; logits [B V] of the token after each."""
        assert self._used == 0, f"the cache already holds {self._used} tokens"
        longest = max(map(len, texts))
        padded = [[*[0] * (longest - len(text)), *text] for text in texts]
        self._padding = torch.tensor([longest - len(text) for text in texts], device=self.device)
        real = torch.arange(longest, device=self.device) >= self._padding[:, None]
        # Padding is a document of its own: no token of a text looks at it.
        mask = document_mask(torch.where(real, 0, -1))
        return self._run(torch.tensor(padded, device=self.device), mask)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Add one token to each text; logits [B V] of the next."""
        columns = torch.arange(self._used + 1, device=self.device)
        mask = (columns >= self._padding[:, None])[:, None, None] if self._padding.any() else None
        return self._run(torch.tensor(tokens, device=self.device)[:, None], mask)

    def keep(self, rows: Sequence[int]) -> None:
        """From now on text i is what text `rows[i]` was: texts that ended are left out, beams are copied."""
        if list(rows) == list(range(len(self._padding))):
            return
        chosen = torch.tensor(rows, dtype=torch.long, device=self.device)
        self._text = {i: (keys[chosen], values[chosen]) for i, (keys, values) in self._text.items()}
        self._padding = self._padding[chosen]
        self._see([self._videos[row] for row in rows])

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
        config, count = self.decoder.config, tokens.shape[1]
        columns = torch.arange(self._used, self._used + count, device=self.device)
        positions = (columns - self._padding[:, None]).clamp(min=0)
        cos, sin = rotary(positions, config.head_size, config.rope_theta)
        x: Tensor = self.decoder.embedding(tokens)
        sees_video = torch.ones_like(tokens, dtype=torch.bool)
        for i, block in self.decoder.layers.items():
            if i in self._seen:
                x = self.decoder.cross[i].attend_to(x, self._seen[i], sees_video)
            x = self._self_block(block, self._text[i], x, cos, sin, mask)
        self._used += count
        logits: Tensor = self.decoder.head(self.decoder.norm(x[:, -1]))
        return logits

    def _self_block(
        self, block: SelfBlock, memory: Memory, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None
    ) -> Tensor:
        """`SelfBlock.forward` whose earlier keys and values are remembered; x [B T D] -> [B T D]."""
        normed = block.attention_norm(x)
        q, k, v = (
            rearrange(part, "b t (h e) -> b h t e", e=block.head_size)
            for part in (block.q(normed), block.k(normed), block.v(normed))
        )
        keys, values = memory
        end = self._used + x.shape[1]
        keys[:, :, self._used : end] = rotate(k, cos, sin)
        values[:, :, self._used : end] = v
        x = x + block.out(attend(rotate(q, cos, sin), keys[:, :, :end], values[:, :, :end], mask))
        result: Tensor = x + block.mlp(block.mlp_norm(x))
        return result
