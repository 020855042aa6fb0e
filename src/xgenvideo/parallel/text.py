"""The decoder's world: tensor x pipeline x ZeRO-1. The step asks it for text embeddings, then for the training pass."""

import contextlib
from typing import Protocol

import torch
from torch import Tensor

from xgenvideo.parallel.pipeline import Pipeline
from xgenvideo.parallel.shards import synchronise_after
from xgenvideo.parallel.stage import Feed, Texts, TextStage
from xgenvideo.parallel.world import World


class TextWorld(Protocol):
    """What the step needs of the decoder, however it is spread. B: the pairs of this replica."""

    def embed(self, texts: Texts, latents: Tensor | None) -> Tensor:
        """Text embeddings [B E] on every rank of the replica, cut from their graph."""

    def learn(self, pull: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
        """The training pass over the texts last embedded: gradients of all parameters are added to.

        Returns this rank's share of the next-token loss (divided by `valid`, the tokens predicted in the global batch)
        and, where the latents went in, their gradient [B Q Dr]. `pull` [B E]: gradient of the text embeddings.
        """

    def read(self, texts: Texts, latents: Tensor | None) -> tuple[Tensor, Tensor]:
        """One pass without gradient: text embeddings as `embed`, and this rank's share of the summed next-token loss.

        Weights stay gathered until the next training pass or `Engine.rest`.
        """


class WholeDecoder:
    """The decoder on one pipeline rank: microbatches one after the other."""

    def __init__(self, stage: TextStage, microbatch_pairs: int, world: World, autocast: bool) -> None:
        self.stage, self.pairs, self.world, self.autocast = stage, microbatch_pairs, world, autocast
        self._made: tuple[Tensor, Tensor] | None = None

    def embed(self, texts: Texts, latents: Tensor | None) -> Tensor:
        """As `TextWorld.embed`. A single microbatch does its training forward here, once."""
        assert latents is not None, "one pipeline rank is the first stage"
        cut = [part.detach().requires_grad_() for part in latents.split(self.pairs)]
        self.stage.feeds = [Feed(text, part) for text, part in zip(texts.split(self.pairs), cut, strict=True)]
        if len(cut) == 1:
            self.stage.valid = torch.ones((), device=latents.device)
            with self._computing():
                self._made = self.stage(index=torch.tensor(0))
            return self._made[1].detach()
        with torch.no_grad(), self._computing():
            return torch.cat([self.stage(index=torch.tensor(i), text_only=True) for i in range(len(cut))])

    def learn(self, pull: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `TextWorld.learn`."""
        feeds = self.stage.feeds
        if self._made is not None:
            (total, embedding), self._made = self._made, None
            loss = total / valid
            with self._computing():
                synchronise_after(self.stage, last=True)
                torch.autograd.backward([loss, embedding], [None, pull.to(embedding.dtype)])
        else:
            loss = self._one_by_one(pull, valid)
        gradients = [feed.latents.grad for feed in feeds if feed.latents is not None]
        self.stage.feeds = []
        return loss.detach(), torch.cat([part for part in gradients if part is not None])

    @torch.no_grad()
    def read(self, texts: Texts, latents: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `TextWorld.read`."""
        assert latents is not None, "one pipeline rank is the first stage"
        parts = zip(texts.split(self.pairs), latents.split(self.pairs), strict=True)
        self.stage.feeds = [Feed(text, part) for text, part in parts]
        self.stage.valid = torch.ones((), device=latents.device)
        with self._computing():
            made = [self.stage(index=torch.tensor(number)) for number in range(len(self.stage.feeds))]
        self.stage.feeds = []
        return torch.cat([embedding for _, embedding in made]), torch.stack([total for total, _ in made]).sum()

    def _one_by_one(self, pull: Tensor, valid: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=pull.dtype, device=pull.device)
        self.stage.valid = valid
        # One context for all microbatches, so that autocast casts each weight once. Gradients still add up in float32,
        # as every microbatch has a backward of its own.
        with self._computing():
            for number, (feed, part) in enumerate(zip(self.stage.feeds, pull.split(self.pairs), strict=True)):
                feed.pull = part
                made = self.stage(index=torch.tensor(number))
                synchronise_after(self.stage, last=number == len(self.stage.feeds) - 1)
                made.backward()
                loss += made.detach()
        return loss

    def _computing(self) -> contextlib.AbstractContextManager[None]:
        # A new context for each pass: autocast keeps its casts of the weights, and those of a pass without gradient are
        # useless to a pass with one.
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.autocast)


class PipedDecoder:
    """The decoder over several pipeline ranks, under a schedule."""

    def __init__(self, pipeline: Pipeline, embedding_rank: int, embedding: int, dtype: torch.dtype) -> None:
        self.pipeline, self.world = pipeline, pipeline.world
        self.embedding_rank, self.embedding, self.dtype = embedding_rank, embedding, dtype

    def embed(self, texts: Texts, latents: Tensor | None) -> Tensor:
        """As `TextWorld.embed`: a pass without gradient through the lower half alone."""
        self._feed(texts, latents)
        made = self.pipeline.embed()
        return self._home(made, texts)

    def _feed(self, texts: Texts, latents: Tensor | None) -> None:
        """Put the microbatches where the stages look them up."""
        pairs = self.pipeline.config.layout.microbatch_pairs
        cut: list[Tensor | None] = [None] * self.pipeline.microbatches
        if latents is not None:
            cut = [part.detach().requires_grad_() for part in latents.split(pairs)]
        feeds = [Feed(text, part) for text, part in zip(texts.split(pairs), cut, strict=True)]
        for stage in self.pipeline.stages:
            stage.feeds = feeds

    def _home(self, made: Tensor | None, texts: Texts) -> Tensor:
        """The text embeddings from the rank that has made them, on all ranks of the replica."""
        if made is None:
            made = torch.empty((len(texts), self.embedding), dtype=self.dtype, device=self.world.device)
        return self.world.from_stage(made.to(self.dtype), self.embedding_rank)

    def read(self, texts: Texts, latents: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `TextWorld.read`."""
        self._feed(texts, latents)
        for stage in self.pipeline.stages:
            stage.valid = torch.ones((), device=self.world.device)
        made, total = self.pipeline.read()
        for stage in self.pipeline.stages:
            stage.feeds = []
        return self._home(made, texts), total

    def learn(self, pull: Tensor, valid: Tensor) -> tuple[Tensor, Tensor | None]:
        """As `TextWorld.learn`."""
        stages = self.pipeline.stages
        feeds = stages[0].feeds
        for feed, part in zip(feeds, pull.split(self.pipeline.config.layout.microbatch_pairs), strict=True):
            feed.pull = part
        for stage in stages:
            stage.valid = valid
        loss = self.pipeline.run()
        gradients = [feed.latents.grad for feed in feeds if feed.latents is not None]
        for stage in stages:
            stage.feeds = []
        return loss, torch.cat([part for part in gradients if part is not None]) if gradients else None
