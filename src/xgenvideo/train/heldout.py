"""The held-out loss of a run while it trains: the forward passes of the step, in any layout, on pairs unseen."""

import dataclasses
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from xgenvideo.config import RunConfig
from xgenvideo.data.batch import Batch
from xgenvideo.data.loader import Loader
from xgenvideo.data.making import BatchMaker
from xgenvideo.errors import ConfigError
from xgenvideo.parallel.engine import Engine
from xgenvideo.parallel.world import World
from xgenvideo.train.passes import count, gathered, pooled_loss, replica_texts

SPLIT = "heldout"


class HeldOut:
    """Whole global batches of the held-out split, the same ones in the same order each time.

    Raises ConfigError where the split does not fill one batch.
    """

    def __init__(self, config: RunConfig, loader: Loader) -> None:
        alone = dataclasses.replace(config, data=dataclasses.replace(config.data, blend="", stitch=False))
        held = loader.dataset.counts.get(SPLIT, 0)
        batches = held // config.train.global_batch_pairs
        if not batches:
            rule = f"measures whole global batches, and {loader.dataset.folder} holds out {held} pairs; set 0"
            raise ConfigError("train.eval_every_steps", config.train.eval_every_steps, rule)
        self.batches = min(batches, config.train.eval_batches or batches)
        self.config = config
        self._maker = BatchMaker(
            loader.dataset, loader.tokenizer, alone, loader.rank, loader.ranks, loader.cache, SPLIT
        )

    def measure(self, engine: Engine, world: World) -> dict[str, float]:
        """Losses by name, as a training step counts them: a mean over predicted tokens, a mean over batches.

        All ranks call it; nothing that training uses changes.
        """
        summed = torch.zeros(2, dtype=torch.float64, device=world.device)
        contrastive = torch.zeros((), dtype=torch.float64, device=world.device)
        for batch in self._read(world):
            total, predicted, contrasted = losses(self.config, engine, batch, world)
            summed += torch.stack([total.double(), predicted.double()])
            contrastive += contrasted
            world.phases.next_held_out()
        engine.rest()
        next_token, mean = float(summed[0] / summed[1]), float(contrastive / self.batches)
        return {
            "heldout_loss": next_token + self.config.objective.contrastive_weight * mean,
            "heldout_next_token": next_token,
            "heldout_contrastive": mean,
        }

    def _read(self, world: World) -> Iterator[Batch]:
        """The batches on this rank's device, one made ahead."""
        pairs = self.config.train.global_batch_pairs
        with ThreadPoolExecutor(1, thread_name_prefix="held-out") as thread:
            ahead = thread.submit(self._maker.make, 0)
            for number in range(1, self.batches + 1):
                world.phases.enter("load")
                made = ahead.result()
                if number < self.batches:
                    ahead = thread.submit(self._maker.make, number * pairs)
                yield made.batch.to(world.device)


def losses(
    config: RunConfig, engine: Engine, batch: Batch, world: World
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a global batch: the summed next-token loss, how many tokens it is of, and the contrastive loss."""
    with torch.no_grad():
        video = engine.visual.look(batch, world.phases)
        world.phases.enter("held out")
        counts, texts = count(batch, world, config), replica_texts(batch, world, config)
        latents = world.to_first_stage(video.latents, config.train.global_batch_pairs)
        embedding, total = engine.text.read(texts, latents)
        videos, all_texts, groups = gathered(video.embedding, embedding, texts.caption_group, config, world)
        contrastive = pooled_loss(videos, all_texts, engine.model.logit_scale, groups, config)
    return world.sum(total) / world.layout.tensor, counts.predicted, contrastive
