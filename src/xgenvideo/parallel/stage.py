"""A run of the decoder's blocks as one module: what a pipeline rank computes. The whole decoder is one stage."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from xgenvideo.models.decoder import CrossBlock
from xgenvideo.models.layers import block_mask, rotary, text_mask
from xgenvideo.models.video_lm import AtCaptionEnd, VideoLM, unit_text_embedding
from xgenvideo.objectives import VocabularyPart, next_token_loss
from xgenvideo.plan.pipeline import Stage

_ATEN = torch.ops.aten
KEPT = (
    _ATEN.mm.default,
    _ATEN.bmm.default,
    _ATEN.addmm.default,
    _ATEN._scaled_mm.default,
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
)


@dataclass(frozen=True, repr=False)
class Texts:
    """The texts of B pairs: tokens, targets, documents, positions, sees_video [B T]; caption_end, caption_group [B]."""

    tokens: Tensor
    targets: Tensor
    documents: Tensor
    positions: Tensor
    sees_video: Tensor
    caption_end: Tensor
    caption_group: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, pairs: int) -> list["Texts"]:
        """Microbatches of `pairs` pairs, views of the same memory."""
        columns = (self.tokens, self.targets, self.documents, self.positions, self.sees_video)
        rows = (*columns, self.caption_end, self.caption_group)
        return [Texts(*part) for part in zip(*(row.split(pairs) for row in rows), strict=True)]

    def packed(self) -> Tensor:
        """Everything as one tensor [B 5T+2] int64: sent in one message."""
        columns = (self.tokens, self.targets, self.documents, self.positions, self.sees_video.long())
        return torch.cat([*columns, self.caption_end[:, None], self.caption_group[:, None]], dim=1)

    @staticmethod
    def unpacked(packed: Tensor) -> "Texts":
        """The way back of `packed`."""
        length = (packed.shape[1] - 2) // 5
        tokens, targets, documents, positions, sees_video = packed[:, :-2].split(length, dim=1)
        return Texts(tokens, targets, documents, positions, sees_video.bool(), packed[:, -2], packed[:, -1])


@dataclass
class Feed:
    """What a stage looks up for one microbatch: its texts, the `pull` [B E] on its text embeddings, and its latents.

    `latents` [B Q Dr] is a leaf on the first stage, where gradients come to rest, and None on the others.
    """

    texts: Texts
    latents: Tensor | None = None
    pull: Tensor | None = None


class Pulled(torch.autograd.Function):
    """Hidden states unchanged; on the way back the embedding [B E] gets its stored gradient (gradient caching)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, hidden: Tensor, embedding: Tensor, pull: Tensor) -> Tensor:
        """hidden [B T D] -> the same."""
        ctx.save_for_backward(pull.to(embedding.dtype))
        return hidden.clone()  # not a view: what leaves a stage must own its memory

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradient of hidden as it comes, and the pull."""
        (pull,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0], pull, None


def keep_products() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Selective recomputation: results of matrix products and attention are kept, the rest is made again."""
    contexts: tuple[AbstractContextManager[Any], AbstractContextManager[Any]]
    contexts = create_selective_checkpoint_contexts(list(KEPT))
    return contexts


def own_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, VocabularyPart | None]:
    """The arguments of `next_token_loss` for logits [B T V] that may be cut over the vocabulary."""
    if not isinstance(logits, DTensor):
        return logits, targets, None
    mesh = logits.device_mesh

    def over_ranks(operation: dist.ReduceOp.RedOpType) -> Callable[[Tensor], Tensor]:
        def reduce(tensor: Tensor) -> Tensor:
            dist.all_reduce(tensor, operation, mesh.get_group())
            return tensor

        return reduce

    first = mesh.get_local_rank() * -(-logits.shape[-1] // mesh.size())
    return (
        logits.to_local(),
        targets,
        VocabularyPart(first, over_ranks(dist.ReduceOp.MAX), over_ranks(dist.ReduceOp.SUM)),
    )


class TextStage(nn.Module):
    """Blocks of the decoder under keys of their global numbers, with the embedding, text embedding or head they meet.

    In: nothing on the first stage, else hidden states and, while a block to come reads them, latents. Out: the same, or
    on the last stage this microbatch's share of the next-token loss. `feeds[i]` and `valid` are set for each step.
    """

    def __init__(self, model: VideoLM, stages: tuple[Stage, ...], number: int) -> None:
        super().__init__()
        decoder, stage = model.decoder, stages[number]
        self.config = decoder.config
        self.number, self.first, self.last = number, number == 0, number == len(stages) - 1
        self.reads = any(later.cross for later in stages[number:])
        self.relays = any(later.cross for later in stages[number + 1 :])
        self.unimodal = self.first or any(layer < self.config.lower_layers for layer in stage.layers)
        blocks: dict[str, nn.Module] = {}
        for layer in sorted({*stage.layers, *stage.cross}):
            if layer in stage.cross:
                blocks[f"cross_{layer}"] = decoder.cross[str(layer)]
            if layer in stage.layers:
                blocks[f"self_{layer}"] = decoder.layers[str(layer)]
        self.blocks = nn.ModuleDict(blocks)
        self.embeds_text = self.config.lower_layers - 1 in stage.layers
        self.embedding = decoder.embedding if self.first else None
        self.text_norm, self.text_projection, self.at_caption_end = None, None, None
        if self.embeds_text:
            self.text_norm, self.text_projection = model.text_norm, model.text_projection
            self.at_caption_end = AtCaptionEnd()
        self.norm: nn.Module | None = decoder.norm if self.last else None
        self.head: nn.Module | None = decoder.head if self.last else None
        self.recompute: dict[str, str] = {}  # by block, none where it is not named
        self.flex = False  # FlexAttention
        self.feeds: list[Feed] = []
        self.valid = torch.ones(())

    def compile_blocks(self) -> None:
        """torch.compile for each block, but for those whose recomputation is selective: what a compiled block computes
        cannot be told apart from outside, so that nothing of it would be kept and all made again.
        """
        for name, block in self.blocks.items():
            if self.recompute.get(name) != "selective":
                block.compile()

    def forward(self, *streams: Tensor, index: Tensor, text_only: bool = False) -> Tensor | tuple[Tensor, ...]:
        """One microbatch, `feeds[index]`. `text_only`: the lower half alone, up to the text embeddings [B E].

        Without a pull the embedding comes out beside the rest, with its graph.
        """
        feed = self.feeds[int(index)]
        texts = feed.texts
        hidden, latents = self._enter(streams, feed, text_only)
        turn = rotary(texts.positions, self.config)
        mask = block_mask(texts.documents) if self.flex else text_mask(texts.documents, hidden.dtype)
        embedding = None
        for name, block in self.blocks.items():
            if isinstance(block, CrossBlock):
                hidden = self._run(name, hidden, latents, texts.sees_video)
            else:
                hidden = self._run(name, hidden, *turn, mask)
            if self.embeds_text and name == f"self_{self.config.lower_layers - 1}":
                embedding = self._embed(hidden, texts.caption_end)
                if text_only:
                    return embedding
                if feed.pull is not None:
                    hidden, embedding = Pulled.apply(hidden, embedding, feed.pull), None  # type: ignore[no-untyped-call]
        if text_only:
            return hidden
        return self._leave(hidden, latents, texts, embedding)

    def _enter(self, streams: tuple[Tensor, ...], feed: Feed, text_only: bool) -> tuple[Tensor, Tensor | None]:
        if self.embedding is not None:
            return self.embedding(feed.texts.tokens), feed.latents
        return streams[0], streams[1] if self.reads and not text_only else None

    def _run(self, name: str, *inputs: Tensor | BlockMask | None) -> Tensor:
        block, way = self.blocks[name], self.recompute.get(name, "none")
        if way == "none" or not torch.is_grad_enabled():
            result: Tensor = block(*inputs)
            return result
        options: dict[str, Any] = {"context_fn": keep_products} if way == "selective" else {}
        again: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
        return again

    def _embed(self, hidden: Tensor, caption_end: Tensor) -> Tensor:
        assert self.at_caption_end is not None, "the lower half ends in another stage"
        assert self.text_norm is not None, "the text embedding is read where the lower half ends"
        assert self.text_projection is not None, "the text embedding is read where the lower half ends"
        return unit_text_embedding(self.at_caption_end(hidden, caption_end), self.text_norm, self.text_projection)

    def _leave(
        self, hidden: Tensor, latents: Tensor | None, texts: Texts, embedding: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        if self.norm is not None and self.head is not None:
            total, _ = next_token_loss(*own_logits(self.head(self.norm(hidden)), texts.targets))
            loss = total / self.valid
            return loss if embedding is None else (loss, embedding)
        out = [hidden]
        if self.relays:
            assert latents is not None, "a later stage reads the video"
            # A copy: schedules that split the backward detach what a stage gave out in place; what came in is a view.
            out.append(latents.clone())
        if embedding is not None:
            out.append(embedding)
        return tuple(out) if len(out) > 1 else hidden
