"""The decoder over several pipeline ranks: the schedules of torch.distributed.pipelining, and the text-only pass.

A schedule carries hidden states and latents from stage to stage and their gradients back. Everything else of a
microbatch is looked up by its number in the feeds that each stage was given at the start of the step.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)

from xgenvideo.config import RunConfig
from xgenvideo.parallel.stage import TextStage
from xgenvideo.parallel.waiting import Waiting
from xgenvideo.parallel.world import World
from xgenvideo.plan.pipeline import rank_of

SINGLE = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}
MULTI = {
    "interleaved_1f1b": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
}


class TimedStage(PipelineStage):
    """A stage that tells `waiting` when it computes; what remains of the schedule's time is the measured bubble."""

    waiting: Waiting

    def forward_one_chunk(self, *arguments: Any, **keywords: Any) -> Any:
        """As PipelineStage's."""
        with self.waiting.computing():
            return super().forward_one_chunk(*arguments, **keywords)

    def backward_one_chunk(self, *arguments: Any, **keywords: Any) -> Any:
        """As PipelineStage's."""
        with self.waiting.computing():
            return super().backward_one_chunk(*arguments, **keywords)

    def backward_weight_one_chunk(self, *arguments: Any, **keywords: Any) -> Any:
        """As PipelineStage's."""
        with self.waiting.computing():
            return super().backward_weight_one_chunk(*arguments, **keywords)


class Pipeline:
    """This rank's stages and the schedule that runs them. `microbatches`: of one replica, `pairs` pairs each."""

    def __init__(self, stages: list[TextStage], count: int, config: RunConfig, world: World) -> None:
        assert world.groups is not None, "a pipeline needs ranks"
        self.stages, self.count, self.config, self.world = stages, count, config, world
        self.group = world.groups.pipeline
        layout = config.layout
        self.microbatches = config.train.global_batch_pairs // (layout.data * layout.microbatch_pairs)
        self.first = any(stage.first for stage in stages)
        self.last = any(stage.last for stage in stages)
        self.schedule = self._schedule()

    def run(self) -> Tensor:
        """Forward and backward of every microbatch; this replica's share of the loss, zero but on the last stage."""
        losses: list[Tensor] = []
        index = torch.arange(self.microbatches)
        arguments = (index,) if self.first else ()
        targets = index if self.last else None
        with self.world.waiting.running():
            self.schedule.step(*arguments, target=targets, losses=losses, return_outputs=False, index=index)
        if not losses:
            wide = torch.promote_types(stream_dtype(self.config), torch.float32)
            return torch.zeros((), dtype=wide, device=self.world.device)
        return torch.stack([loss.detach() for loss in losses]).sum()

    @torch.no_grad()
    def embed(self) -> Tensor | None:
        """The text embeddings [B E] of this replica on the rank that holds the end of the lower half, else None.

        Chunk after chunk, microbatch after microbatch; no rank waits but for the rank before it.
        """
        embeddings: Tensor | None = None
        sent: list[tuple[dist.Work, Tensor]] = []
        with self.world.waiting.running():
            for stage in self.stages:
                if not stage.unimodal:
                    continue
                made = [self._lower(stage, torch.tensor(number), sent) for number in range(self.microbatches)]
                if stage.embeds_text:
                    embeddings = torch.cat(made)
            for work, _ in sent:
                work.wait()
        return embeddings

    def _lower(self, stage: TextStage, index: Tensor, sent: list[tuple[dist.Work, Tensor]]) -> Tensor:
        inputs = [] if stage.first else [self._receive(stage.number - 1)]
        with self.world.waiting.computing():
            output = stage(*inputs, index=index, text_only=True)
        assert isinstance(output, Tensor)
        if not stage.embeds_text:
            sent.append((self._send(output, stage.number + 1), output))
        return output

    def _send(self, hidden: Tensor, stage: int) -> dist.Work:
        work = dist.isend(hidden.contiguous(), group=self.group, group_dst=rank_of(stage, self.config.layout))
        assert work is not None
        return work

    def _receive(self, stage: int) -> Tensor:
        hidden = torch.empty_like(self._hidden(), device=self.world.device)
        dist.recv(hidden, group=self.group, group_src=rank_of(stage, self.config.layout))
        return hidden

    def _hidden(self) -> Tensor:
        """Shape and type of hidden states between stages: this rank's part of the sequence."""
        config, layout = self.config, self.config.layout
        shape = (layout.microbatch_pairs, config.data.text_tokens // layout.tensor, config.model.decoder.width)
        return torch.empty(shape, dtype=stream_dtype(config), device="meta", requires_grad=True)

    def _latents(self) -> Tensor:
        resampler = self.config.model.resampler
        shape = (self.config.layout.microbatch_pairs, resampler.queries, resampler.width)
        return torch.empty(shape, dtype=stream_dtype(self.config), device="meta", requires_grad=True)

    def _schedule(self) -> Any:
        stages: list[Any] = [self._pipeline_stage(stage) for stage in self.stages]
        options: dict[str, Any] = {"n_microbatches": self.microbatches, "loss_fn": _loss, "scale_grads": False}
        name = self.config.layout.schedule
        if name in SINGLE:
            return SINGLE[name](stages[0], **options)
        return MULTI[name](stages, **options)

    def _pipeline_stage(self, stage: TextStage) -> PipelineStage:
        """Shapes and types are told, so that the first step does not have to find them out with a pass of its own."""
        inputs = [torch.empty((1,), dtype=torch.int64, device="meta")] if stage.first else [self._hidden()]
        if stage.reads and not stage.first:
            inputs.append(self._latents())
        outputs = [torch.empty((), dtype=stream_dtype(self.config), device="meta", requires_grad=True)]
        if not stage.last:
            outputs = [self._hidden()] + [self._latents()] * stage.relays
        timed = TimedStage(
            stage,
            stage.number,
            self.count,
            self.world.device,
            input_args=tuple(inputs),
            output_args=tuple(outputs),
            group=self.group,
        )
        timed.waiting = self.world.waiting
        return timed


def stream_dtype(config: RunConfig) -> torch.dtype:
    """The type of hidden states and latents on their way between ranks."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[config.train.precision]


def _loss(output: Tensor, target: Tensor) -> Tensor:
    """The last stage computes the loss itself, with what it looks up."""
    return output
