"""One training step, on one page. The passes it calls are in passes.py, in the order in which they are called here."""

import torch

from xgenvideo.config import RunConfig
from xgenvideo.data.loader import Loader
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.parallel.world import World
from xgenvideo.train.metrics import Metrics
from xgenvideo.train.optimizer import clamp_logit_scale, clip_gradients, set_learning_rate
from xgenvideo.train.passes import contrast, embed_text, encode, forward_backward, microbatches, predicted, resample


def training_step(
    config: RunConfig, model: VideoLM, loader: Loader, optimizer: torch.optim.Optimizer, world: World, step: int
) -> Metrics:
    """Load the global batch number `step` (from 0), learn from it once, and say what was seen.

    The contrastive loss is exact over the global batch whatever the number of microbatches (gradient caching, arXiv
    2101.06983): its gradient with respect to all embeddings is worked out first, and joins each microbatch's backward.
    """
    batch = loader.next_batch().to(world.device)
    parts = microbatches(batch, config.layout.microbatch_pairs)
    valid = world.sum(predicted(batch))

    # The visual world: the frozen encoder, then latents and video embeddings, whose graph waits for its gradient.
    features = [encode(model, part, config.train.precision) for part in parts]
    videos = [resample(model, part, seen, config, len(parts)) for part, seen in zip(parts, features, strict=True)]

    # Text embeddings, forward only (a single microbatch keeps its graph for the training pass instead).
    texts = [embed_text(model, part, video, config, len(parts)) for part, video in zip(parts, videos, strict=True)]
    contrasts = contrast(model, parts, videos, texts, config, world.gather)

    # The training pass: next-token loss over all valid tokens of the global batch, plus the stored gradients.
    next_token = torch.zeros_like(contrasts.loss)
    for part, video, text, pull in zip(parts, videos, texts, contrasts.gradients, strict=True):
        next_token += forward_backward(model, part, video, text, pull, valid, config)

    lr = set_learning_rate(optimizer, config, step)
    norm = clip_gradients(model, config.optimizer.clip_norm)
    loss = next_token + config.objective.contrastive_weight * contrasts.loss
    finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
    if finite:
        optimizer.step()
        clamp_logit_scale(model)
    optimizer.zero_grad(set_to_none=True)
    return Metrics.of(step + 1, batch, finite, lr, loss, next_token, contrasts.loss, norm)
