"""One training step, on one page, the same for one process and for 512: the engine's two worlds know the layout."""

import torch

from xgenvideo.config import RunConfig
from xgenvideo.data.loader import Loader
from xgenvideo.parallel.engine import Engine
from xgenvideo.parallel.world import World
from xgenvideo.train.metrics import Metrics
from xgenvideo.train.optimizer import clamp_logit_scale, clip_gradients, set_learning_rate
from xgenvideo.train.passes import contrast, count, replica_texts


def training_step(
    config: RunConfig, engine: Engine, loader: Loader, optimizer: torch.optim.Optimizer, world: World, step: int
) -> Metrics:
    """Load the global batch number `step` (from 0), learn from it once, and say what was seen.

    The contrastive loss is exact over the global batch whatever the layout (gradient caching, arXiv 2101.06983): its
    gradient with respect to all embeddings is worked out first, and joins the backward of each world.
    """
    world.phases.enter("load")
    batch, pairs = loader.next_batch().to(world.device), config.train.global_batch_pairs

    # The visual world, on every rank: frozen encoder, latents, video embeddings. Then the join, once a step.
    video = engine.visual.look(batch, world.phases)
    world.phases.enter("join")
    counts, texts = count(batch, world, config), replica_texts(batch, world, config)
    latents = world.to_first_stage(video.latents.detach(), pairs)

    # Text embeddings, forward only; then the loss that needs all pairs at once.
    world.phases.enter("contrast")
    embedding = engine.text.embed(texts, latents)
    pulls = contrast(video.embedding, embedding, texts.caption_group, engine.model.logit_scale, config, world)
    engine.model.logit_scale.grad = pulls.by_scale

    # The training pass: next-token loss over all predicted tokens of the global batch, plus the stored gradients.
    world.phases.enter("learn")
    next_token, by_latents = engine.text.learn(pulls.by_text, counts.predicted)
    engine.visual.learn(video, world.from_first_stage(by_latents, video.latents, pairs), pulls.by_video)

    world.phases.enter("update")
    # Every rank has the contrastive loss; their mean, so that all decide alike even where one has computed it wrong.
    shares = torch.stack([next_token / world.layout.tensor, pulls.loss / world.size])
    next_token, contrastive = world.sum(shares).unbind()
    norm = clip_gradients(engine.pieces, config.optimizer.clip_norm, world)
    lr = set_learning_rate(optimizer, config, step)
    loss = next_token + config.objective.contrastive_weight * contrastive
    finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
    if finite:
        optimizer.step()
        clamp_logit_scale(engine.model)
    optimizer.zero_grad(set_to_none=True)
    world.phases.next_step()
    return Metrics.of(step + 1, counts, texts, finite, lr, loss, next_token, contrastive, norm)
