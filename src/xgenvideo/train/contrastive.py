"""The contrastive loss over the whole global batch, though no microbatch ever holds it: gradient caching.

A first pass without gradient gives every embedding; the loss and its gradient with respect to the embeddings are
computed once over all pairs; the training pass then adds the inner product of each embedding with its stored gradient
(GradCache, arXiv 2101.06983; open_clip's accum_freq). There is no dropout, so this is exact.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.data.batch import Batch
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.objectives import contrastive_loss, sigmoid_contrastive_loss
from xgenvideo.parallel.world import World

ContrastiveTerm = Callable[[Tensor, Tensor], Tensor]
LOSSES = {"infonce": contrastive_loss, "sigmoid": sigmoid_contrastive_loss}


@dataclass
class Contrastive:
    """One term a microbatch, (video [B E], text [B E]) -> what to add to its loss; and the losses seen so far."""

    terms: list[ContrastiveTerm] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    def loss(self) -> Tensor:
        """The contrastive loss, mean over the scopes it was computed in."""
        return torch.stack(self.losses).mean()


def contrastive_terms(
    model: VideoLM, parts: list[Batch], features: list[Tensor], config: RunConfig, world: World
) -> Contrastive:
    """The terms of one step. With one microbatch, or in microbatch scope, the loss is taken directly: no extra pass."""
    if config.objective.contrastive_scope == "global" and (len(parts) > 1 or world.size > 1):
        return _cached(model, parts, features, config, world)
    found = Contrastive()
    weight, loss = config.objective.contrastive_weight / len(parts), LOSSES[config.objective.contrastive]

    def direct(part: Batch) -> ContrastiveTerm:
        def term(video: Tensor, text: Tensor) -> Tensor:
            value = loss(video, text, model.logit_scale, part.caption_group)
            found.losses.append(value.detach())
            return weight * value

        return term

    found.terms = [direct(part) for part in parts]
    return found


def _cached(model: VideoLM, parts: list[Batch], features: list[Tensor], config: RunConfig, world: World) -> Contrastive:
    """Embed everything once without gradient; each term is the inner product with the stored gradient."""
    with torch.no_grad():
        pairs = [_embed(model, part, seen) for part, seen in zip(parts, features, strict=True)]
    videos = torch.cat([video for video, _ in pairs]).requires_grad_()
    texts = torch.cat([text for _, text in pairs]).requires_grad_()
    groups = world.gather(torch.cat([part.caption_group for part in parts]))
    loss = LOSSES[config.objective.contrastive](world.gather(videos), world.gather(texts), model.logit_scale, groups)
    # The logit scale gets its gradient here, once; the embeddings' gradients wait for the training pass.
    (config.objective.contrastive_weight * loss).backward()
    assert videos.grad is not None, "the loss reaches every video embedding"
    assert texts.grad is not None, "the loss reaches every text embedding"
    sizes = [len(part) for part in parts]
    stored = zip(videos.grad.split(sizes), texts.grad.split(sizes), strict=True)
    return Contrastive([_inner_product(video, text) for video, text in stored], [loss.detach()])


def _embed(model: VideoLM, part: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """Video and text embeddings [B E] of a microbatch."""
    video = model.video_embedding(model.latents(features, part.pts, part.frame_mask))
    return video, model.text_embedding(part.tokens, part.positions, part.documents, part.caption_end)


def _inner_product(video_gradient: Tensor, text_gradient: Tensor) -> ContrastiveTerm:
    def term(video: Tensor, text: Tensor) -> Tensor:
        return (video * video_gradient).sum() + (text * text_gradient).sum()

    return term
