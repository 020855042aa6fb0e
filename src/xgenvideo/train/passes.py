"""What the step does between the two worlds: texts brought together, the exact contrastive loss, the finite check."""

from dataclasses import dataclass

import torch
from torch import Tensor

from xgenvideo.config import ObjectiveConfig, RunConfig
from xgenvideo.data.batch import Batch
from xgenvideo.objectives import IGNORED, contrastive_loss, sigmoid_contrastive_loss
from xgenvideo.parallel.stage import Texts
from xgenvideo.parallel.world import World


@dataclass(frozen=True)
class Counts:
    """What the global batch holds. `predicted` tokens are learnt; `tokens` are text without padding.

    `padded_frames`: frames of all pairs with padding; `encoded`: frames that the encoder ran on.
    """

    pairs: int
    predicted: Tensor
    tokens: Tensor
    padded_frames: Tensor
    encoded: Tensor


def count(batch: Batch, world: World, config: RunConfig) -> Counts:
    """Count the global batch, from every rank's share; `predicted` is at least 1, as it divides."""
    # Filled in on the device: a number that is copied there has the host wait for all that is queued.
    padded, none = (torch.full((), number, device=world.device) for number in (batch.pts.numel(), 0))
    encoded = none if batch.frames is None else batch.frame_mask.sum()
    own = torch.stack([(batch.targets != IGNORED).sum(), (batch.documents >= 0).sum(), padded, encoded])
    predicted, tokens, padded, encoded = world.sum(own).unbind()
    return Counts(config.train.global_batch_pairs, predicted.clamp(min=1), tokens, padded, encoded)


def replica_texts(batch: Batch, world: World, config: RunConfig) -> Texts:
    """The texts of all pairs of this rank's replica, on all its ranks."""
    own = Texts(
        batch.tokens,
        batch.targets,
        batch.documents,
        batch.positions,
        batch.sees_video,
        batch.caption_end,
        batch.caption_group,
    )
    if world.layout.ranks_per_replica == 1:
        return own
    return Texts.unpacked(world.gather_replica(own.packed(), config.train.global_batch_pairs))


@dataclass(frozen=True)
class Contrast:
    """The contrastive loss over the global batch, and its gradients.

    `by_video` [b E] of this rank's pairs, `by_text` [B E] of its replica's, `by_scale` [1] of the temperature.
    """

    loss: Tensor
    by_video: Tensor
    by_text: Tensor
    by_scale: Tensor


def contrast(
    video: Tensor, text: Tensor, groups: Tensor, logit_scale: Tensor, config: RunConfig, world: World
) -> Contrast:
    """The loss over all pairs of all ranks, and its gradients, weighted. video [b E] is this rank's, text [B E] and
    groups [B] its replica's.

    Every rank computes the whole of it (2,048 pairs: some GFLOP), so that no gradient has to travel. Scope
    "microbatch" takes negatives from one microbatch of every replica alone, which is another, weaker loss.
    """
    videos, texts, all_groups = gathered(video, text, groups, config, world)
    leaves = videos.requires_grad_(), texts.requires_grad_(), logit_scale.detach().requires_grad_()
    loss = pooled_loss(*leaves, all_groups, config)
    by_videos, by_texts, by_scale = torch.autograd.grad(config.objective.contrastive_weight * loss, leaves)
    share, replica = world.layout.share(world.pair_rank, config.train.global_batch_pairs), len(text)
    start = world.place.data * replica
    return Contrast(loss.detach(), by_videos[share.start : share.stop], by_texts[start : start + replica], by_scale)


def gathered(
    video: Tensor, text: Tensor, groups: Tensor, config: RunConfig, world: World
) -> tuple[Tensor, Tensor, Tensor]:
    """Video embeddings [B E], text embeddings [B E] and groups [B] of the global batch; arguments as of `contrast`.

    Embeddings are in at least float32 (a softmax over thousands needs it), and cut from their graphs.
    """
    videos = world.gather_shares(video.detach(), config.train.global_batch_pairs)
    texts = world.gather_replicas(text.detach())
    return _wide(videos), _wide(texts), world.gather_replicas(groups)


def pooled_loss(videos: Tensor, texts: Tensor, logit_scale: Tensor, groups: Tensor, config: RunConfig) -> Tensor:
    """The contrastive loss [] over what `gathered` gives, not weighted."""
    losses = [
        _pool_loss(config.objective, videos[pool], texts[pool], logit_scale, groups[pool])
        for pool in pools(config, len(videos), videos.device)
    ]
    return torch.stack(losses).mean()


def pools(config: RunConfig, pairs: int, device: torch.device) -> list[Tensor]:
    """Which pairs of the global batch are contrasted with each other: all, or each microbatch of all replicas."""
    numbers = torch.arange(pairs, device=device)
    if config.objective.contrastive_scope == "global":
        return [numbers]
    by_replica = numbers.view(config.layout.data, -1, config.layout.microbatch_pairs)
    return list(by_replica.transpose(0, 1).flatten(1))


def _wide(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).detach()


def _pool_loss(objective: ObjectiveConfig, video: Tensor, text: Tensor, scale: Tensor, groups: Tensor) -> Tensor:
    loss = sigmoid_contrastive_loss if objective.contrastive == "sigmoid" else contrastive_loss
    return loss(video, text, scale, groups)
