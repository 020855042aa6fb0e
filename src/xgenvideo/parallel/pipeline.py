"""The decoder over several pipeline ranks: the schedules of torch.distributed.pipelining, and the text-only pass.

A schedule carries hidden states and latents from stage to stage and their gradients back. Everything else of a
microbatch is looked up by its number in the feeds that each stage was given at the start of the step.
"""

from collections import deque
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

from xgenvideo.config import LayoutConfig, RunConfig
from xgenvideo.parallel.stage import TextStage
from xgenvideo.parallel.waiting import Waiting
from xgenvideo.parallel.world import Groups, World
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


class Handed:
    """Streams on their way from stage to stage, in the order of stages and microbatches."""

    def __init__(self, groups: Groups, layout: LayoutConfig) -> None:
        self.groups, self.layout = groups, layout
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._kept: deque[Tensor] = deque()  # for a next stage on this rank

    def give(self, stage: int, streams: list[Tensor]) -> None:
        """Send what `stage` has made to the next one; nothing waits."""
        for stream in streams:
            if self._shared(stage, stage + 1):
                self._kept.append(stream)
                continue
            whole = stream.contiguous()
            work = dist.isend(whole, group=self._group(stage), group_dst=rank_of(stage + 1, self.layout))
            assert work is not None
            self._sent.append((work, whole))

    def take(self, stage: int, room: list[Tensor]) -> list[Tensor]:
        """What the stage before `stage` has made, in `room`."""
        if self._shared(stage - 1, stage):
            return [self._kept.popleft() for _ in room]
        for stream in room:
            dist.recv(stream, group=self._group(stage - 1), group_src=rank_of(stage - 1, self.layout))
        return room

    def wait(self) -> None:
        """Until everything sent has left."""
        for work, _ in self._sent:
            work.wait()

    def _group(self, stage: int) -> dist.ProcessGroup:
        """In which `stage` sends to the next."""
        forth = rank_of(stage, self.layout) < rank_of(stage + 1, self.layout)
        return self.groups.pipeline if forth else self.groups.pipeline_back

    def _shared(self, one: int, other: int) -> bool:
        return rank_of(one, self.layout) == rank_of(other, self.layout)


class Pipeline:
    """This rank's stages and the schedule that runs them. `microbatches`: of one replica, `pairs` pairs each."""

    def __init__(self, stages: list[TextStage], count: int, config: RunConfig, world: World) -> None:
        assert world.groups is not None, "a pipeline needs ranks"
        self.stages, self.count, self.config, self.world = stages, count, config, world
        self.groups = world.groups
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
        return torch.stack([loss.detach() for loss in losses]).sum() if losses else self._no_loss()

    @torch.no_grad()
    def embed(self) -> Tensor | None:
        """The text embeddings [B E] of this replica on the rank that holds the end of the lower half, else None."""
        return self._forward(text_only=True)[0]

    @torch.no_grad()
    def read(self) -> tuple[Tensor | None, Tensor]:
        """The text embeddings as `embed` gives them, and this replica's share of the loss, as `run` gives it."""
        return self._forward(text_only=False)

    def _forward(self, text_only: bool) -> tuple[Tensor | None, Tensor]:
        """Forward alone: chunk after chunk, microbatch after microbatch; no rank waits but for the rank before it."""
        embeddings: list[Tensor] = []
        losses: list[Tensor] = []
        handed = Handed(self.groups, self.config.layout)
        with self.world.waiting.running():
            for stage in self.stages:
                if text_only and not stage.unimodal:
                    continue
                for number in range(self.microbatches):
                    streams = [] if stage.first else handed.take(stage.number, self._streams(stage, text_only))
                    with self.world.waiting.computing():
                        made = stage(*streams, index=torch.tensor(number), text_only=text_only)
                    out = list(made) if isinstance(made, tuple) else [made]
                    if stage.embeds_text:
                        embeddings.append(out.pop())
                    if stage.last and not text_only:
                        losses.append(out.pop())
                    handed.give(stage.number, out)
            handed.wait()
        loss = torch.stack(losses).sum() if losses else self._no_loss()
        return torch.cat(embeddings) if embeddings else None, loss

    def _no_loss(self) -> Tensor:
        wide = torch.promote_types(stream_dtype(self.config), torch.float32)
        return torch.zeros((), dtype=wide, device=self.world.device)

    def _streams(self, stage: TextStage, text_only: bool) -> list[Tensor]:
        """Room for what comes from the stage before."""
        streams = [self._hidden()]
        if stage.reads and not text_only:
            streams.append(self._latents())
        return [torch.empty_like(stream, device=self.world.device, requires_grad=False) for stream in streams]

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
            group=self.groups.pipeline,
        )
        timed.waiting = self.world.waiting
        return timed


def stream_dtype(config: RunConfig) -> torch.dtype:
    """The type of hidden states and latents on their way between ranks."""
    return {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}[config.train.precision]


def _loss(output: Tensor, target: Tensor) -> Tensor:
    """The last stage computes the loss itself, with what it looks up."""
    return output
