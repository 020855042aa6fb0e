"""One training step, from a batch to new weights. Everything that happens to the model in training is on this page."""

import torch
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.data.batch import Batch
from xgenvideo.models.video_lm import LOGIT_SCALE_LIMIT, VideoLM
from xgenvideo.objectives import next_token_loss, valid_targets
from xgenvideo.parallel.world import World
from xgenvideo.train.contrastive import ContrastiveTerm, contrastive_terms
from xgenvideo.train.metrics import Metrics
from xgenvideo.train.optimizer import TrainOptimizer
from xgenvideo.train.precision import matrix_precision


def train_step(
    model: VideoLM, optimizer: TrainOptimizer, batch: Batch, step: int, config: RunConfig, world: World
) -> Metrics:
    """Take step number `step` (from 0) on this rank's share of the global batch; returns what it measured.

    The next-token loss is normalised by the valid targets of the whole global batch, the contrastive loss is over all
    its pairs, whatever the microbatches. A step whose gradient is not finite changes nothing and says so.
    """
    parts = batch.split(config.layout.microbatch_pairs)
    valid = world.sum(valid_targets(batch.targets))
    optimizer.zero_grad()
    with matrix_precision(config, batch.tokens.device):
        features = [encode(model, part) for part in parts]
        contrastive = contrastive_terms(model, parts, features, config, world)
        loss_sum = torch.zeros((), device=batch.tokens.device)
        for part, seen, term in zip(parts, features, contrastive.terms, strict=True):
            loss_sum = loss_sum + forward_backward(model, part, seen, valid, term)
    norm = optimizer.clip(config.optimizer.clip_norm)
    finite = bool(torch.isfinite(norm))
    if finite:
        optimizer.step(step)
        with torch.no_grad():
            model.logit_scale.clamp_(0, LOGIT_SCALE_LIMIT)
    return Metrics(
        step=step,
        loss_next_token=float(world.sum(loss_sum) / valid),
        loss_contrastive=float(contrastive.loss()),
        grad_norm=float(norm),
        lr=optimizer.learning_rate(step),
        skipped=not finite,
        pairs=len(batch) * world.size,
        valid_tokens=int(valid),
        tokens=batch.tokens.numel() * world.size,
        frames=batch.pts.numel() * world.size,
    )


def encode(model: VideoLM, part: Batch) -> Tensor:
    """Patch features [B F P Wv] of a batch: the cached ones, or the frozen encoder's, without gradient."""
    return part.features if part.features is not None else model.encode_frames(part.present_frames())


def forward_backward(model: VideoLM, part: Batch, features: Tensor, valid: Tensor, term: ContrastiveTerm) -> Tensor:
    """Add one microbatch's gradients; returns the sum of its next-token losses."""
    latents = model.latents(features, part.pts, part.frame_mask)
    logits, text = model(part.tokens, part.positions, part.documents, part.caption_end, latents, part.sees_video)
    loss_sum, _ = next_token_loss(logits, part.targets)
    (loss_sum / valid + term(model.video_embedding(latents), text)).backward()
    return loss_sum.detach()
