"""The passes of a training step. Every one takes one microbatch of one process; the step says in which order."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xgenvideo.config import ObjectiveConfig, RunConfig
from xgenvideo.data.batch import Batch
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.objectives import IGNORED, contrastive_loss, next_token_loss, sigmoid_contrastive_loss

Gather = Callable[[Tensor], Tensor]


@dataclass(frozen=True, repr=False)
class Video:
    """The videos of a microbatch. `memory` [B Q Dr] is what the decoder reads: the latents, cut from their graph.

    Its gradient comes back from the decoder and then runs through `latents` [B Q Dr], with that of `embedding` [B E].
    """

    latents: Tensor
    embedding: Tensor
    memory: Tensor


@dataclass(frozen=True, repr=False)
class Text:
    """The text embeddings [B E] of a microbatch, and its logits [B T V] if this was its training forward already."""

    embedding: Tensor
    logits: Tensor | None


@dataclass(frozen=True)
class Pull:
    """Gradient of the contrastive loss with respect to a microbatch's embeddings, each [B E]."""

    video: Tensor
    text: Tensor


@dataclass(frozen=True)
class Contrast:
    """The contrastive loss over the global batch, without graph, and its gradient for each microbatch."""

    loss: Tensor
    gradients: list[Pull]


def microbatches(batch: Batch, pairs: int) -> list[Batch]:
    """The batch in pieces of `pairs` pairs, its tensors shared, not copied."""
    named = {spec.name: getattr(batch, spec.name) for spec in fields(batch)}
    cut = {name: value for name, value in named.items() if isinstance(value, Tensor | tuple)}
    pieces = []
    for start in range(0, len(batch), pairs):
        values: dict[str, Any] = {name: value[start : start + pairs] for name, value in cut.items()}
        pieces.append(replace(batch, position=batch.position + start, **values))
    return pieces


def predicted(batch: Batch) -> Tensor:
    """How many tokens of the batch are learnt; at least 1, as it divides."""
    return (batch.targets != IGNORED).sum().clamp(min=1)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Matrix work in bf16 over fp32 masters, or everything in the dtype of the weights.

    A new context for each pass: autocast caches its casts of the weights, and those of a pass without gradient are
    useless to a pass with one.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def encode(model: VideoLM, part: Batch, precision: str) -> Tensor:
    """Features [B F P Wv] of the frozen encoder; from the batch where they are cached. Padding frames are not run."""
    dtype = model.logit_scale.dtype
    if part.features is not None:
        return part.features.to(dtype)
    assert part.frames is not None, f"a batch without video: {part}"
    with autocast(part.frames.device, precision):
        seen = model.encode_frames(part.frames[part.frame_mask])
    features = seen.new_zeros((*part.frame_mask.shape, *seen.shape[1:]), dtype=dtype)
    features[part.frame_mask] = seen.to(dtype)
    return features


def resample(model: VideoLM, part: Batch, features: Tensor, config: RunConfig, count: int) -> Video:
    """Latents and video embeddings, with graph. With more than one microbatch the graph is made again when needed."""

    def run(features: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(features.device, config.train.precision):
            latents = model.latents(features, part.pts, part.frame_mask)
            return latents, model.video_embedding(latents)

    if count == 1:
        latents, embedding = run(features)
    else:
        latents, embedding = checkpoint(run, features, use_reentrant=False, preserve_rng_state=False)
    return Video(latents, embedding, latents.detach().requires_grad_())


def embed_text(model: VideoLM, part: Batch, video: Video, config: RunConfig, count: int) -> Text:
    """Text embeddings without graph, through the lower half alone. A single microbatch does its training forward."""
    if count == 1:
        return _decode(model, part, video, config)
    with torch.no_grad(), autocast(part.tokens.device, config.train.precision):
        return Text(model.text_embedding(part.tokens, part.positions, part.documents, part.caption_end), None)


def _decode(model: VideoLM, part: Batch, video: Video, config: RunConfig) -> Text:
    with autocast(part.tokens.device, config.train.precision):
        logits, embedding = model(
            part.tokens, part.positions, part.documents, part.caption_end, video.memory, part.sees_video
        )
    return Text(embedding, logits)


def contrast(
    model: VideoLM, parts: list[Batch], videos: list[Video], texts: list[Text], config: RunConfig, gather: Gather
) -> Contrast:
    """The loss over all pairs of all ranks, once; its gradient for logit_scale goes into `.grad`.

    `contrastive_scope` "microbatch" takes negatives from a microbatch alone, which is another, weaker loss.
    """
    pooled = [_leaf(torch.cat([video.embedding for video in videos])), _leaf(torch.cat([t.embedding for t in texts]))]
    groups = torch.cat([part.caption_group for part in parts])
    sizes = [len(part) for part in parts]
    pools = sizes if config.objective.contrastive_scope == "microbatch" else [len(groups)]
    losses = [
        _pool_loss(config.objective, gather(video), gather(text), model.logit_scale, gather(group))
        for video, text, group in zip(*(rows.split(pools) for rows in (*pooled, groups)), strict=True)
    ]
    loss = torch.stack(losses).mean()
    weighted = config.objective.contrastive_weight * loss
    by_video, by_text, by_scale = torch.autograd.grad(weighted, [*pooled, model.logit_scale])
    model.logit_scale.grad = by_scale
    pulls = [Pull(video, text) for video, text in zip(by_video.split(sizes), by_text.split(sizes), strict=True)]
    return Contrast(loss.detach(), pulls)


def _leaf(rows: Tensor) -> Tensor:
    """The same values cut from their graph, in at least float32: a softmax over thousands needs it."""
    return rows.detach().to(torch.promote_types(rows.dtype, torch.float32)).requires_grad_()


def _pool_loss(objective: ObjectiveConfig, video: Tensor, text: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    loss = sigmoid_contrastive_loss if objective.contrastive == "sigmoid" else contrastive_loss
    return loss(video, text, scale, groups)


def forward_backward(
    model: VideoLM, part: Batch, video: Video, text: Text, pull: Pull, valid: Tensor, config: RunConfig
) -> Tensor:
    """Add one microbatch to the gradients; returns its share of the next-token loss, without graph.

    The loss is divided by the `valid` tokens of the global batch before the backward, so microbatches just add up.
    """
    if text.logits is None:
        text = _decode(model, part, video, config)
    assert text.logits is not None, "the training forward gives logits"
    total, _ = next_token_loss(text.logits, part.targets)
    loss = total / valid
    (loss + (text.embedding * pull.text).sum()).backward()
    assert video.memory.grad is not None, "the decoder reads every video"
    torch.autograd.backward([video.latents, video.embedding], [video.memory.grad, pull.video.to(video.embedding.dtype)])
    return loss.detach()
