"""The visual world: every rank encodes and resamples its own share of the global batch, in microbatches."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from xgenvideo.data.batch import Batch
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.models.vision import FrozenVision
from xgenvideo.parallel.phases import Phases
from xgenvideo.parallel.shards import synchronise_after


@dataclass(frozen=True, repr=False)
class Video:
    """Latents [b Q Dr] and video embeddings [b E] of this rank's pairs, with the graph that waits for gradients."""

    latents: Tensor
    embedding: Tensor


class Trunk(nn.Module):
    """The trained parts of the visual world: resampler, pool, projection."""

    def __init__(self, model: VideoLM) -> None:
        super().__init__()
        self.resampler, self.video_pool = model.resampler, model.video_pool
        self.video_projection = model.video_projection

    def forward(self, features: Tensor, pts: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        """features [B F P Wv], pts and frame_mask [B F] -> latents [B Q Dr] and unit vectors [B E]."""
        latents = self.resampler(features, pts, frame_mask)
        return latents, functional.normalize(self.video_projection(self.video_pool(latents)), dim=-1)


class VisualWorld:
    """Frozen encoder and trunk of this rank. `pairs`: how many go through at once; `dtype`: of the trunk's weights when
    they are used, unless `autocast` says that they are cast to bf16 at each use.
    """

    def __init__(self, vision: FrozenVision, trunk: Trunk, pairs: int, dtype: torch.dtype, autocast: bool) -> None:
        self.vision, self.trunk, self.pairs, self.dtype, self.autocast = vision, trunk, pairs, dtype, autocast

    def look(self, batch: Batch, phases: Phases) -> Video:
        """Encode and resample. With more than one microbatch the trunk's graph is made again when it is needed."""
        parts, made = batch.split(self.pairs), []
        # Asked before any work is queued: later the host of a GPU would wait for that work to know.
        shown = [shown_frames(part) for part in parts]
        for part, places in zip(parts, shown, strict=True):
            phases.enter("encode")
            features = self.encode(part, places)
            phases.enter("resample")
            made.append(self._resample(part, features, once=len(parts) == 1))
        if len(made) == 1:
            return Video(*made[0])
        return Video(torch.cat([latents for latents, _ in made]), torch.cat([embedding for _, embedding in made]))

    @torch.no_grad()
    def encode(self, part: Batch, shown: Tensor) -> Tensor:
        """Features [B F P Wv] of the frozen encoder, or those that came cached. Padding frames are not run.

        `shown`: what `shown_frames` says of `part`.
        """
        if part.features is not None:
            cached: Tensor = part.features.to(self.dtype)
            return cached
        frames = part.present_frames().flatten(0, 1)
        # The encoder is not sharded, so that autocast is what gives it the precision of the trunk.
        with self._mixed(frames, self.autocast or self.dtype == torch.bfloat16):
            seen = self.vision(frames[shown])
        features: Tensor = seen.new_zeros((len(frames), *seen.shape[1:]), dtype=self.dtype)
        features[shown] = seen.to(self.dtype)
        return features.view(*part.frame_mask.shape, *features.shape[1:])

    def _resample(self, part: Batch, features: Tensor, once: bool) -> tuple[Tensor, Tensor]:
        def run(features: Tensor) -> tuple[Tensor, Tensor]:
            with self._mixed(features, self.autocast):
                latents, embedding = self.trunk(features, part.pts, part.frame_mask)
            return latents, embedding

        if once:
            return run(features)
        again: tuple[Tensor, Tensor] = checkpoint(run, features, use_reentrant=False, preserve_rng_state=False)
        return again

    def learn(self, video: Video, by_latents: Tensor, by_embedding: Tensor) -> None:
        """Add to the trunk's gradients, summed over all ranks. Gradients have the shapes of `video`."""
        synchronise_after(self.trunk, last=True)
        gradients = [by_latents.to(video.latents.dtype), by_embedding.to(video.embedding.dtype)]
        torch.autograd.backward([video.latents, video.embedding], gradients)

    def _mixed(self, like: Tensor, enabled: bool) -> torch.autocast:
        """Matrices in bf16 over fp32 masters. A new context each time, as it keeps its casts of the weights."""
        return torch.autocast(like.device.type, torch.bfloat16, enabled=enabled)


def shown_frames(part: Batch) -> Tensor:
    """Where the frames that are no padding stand among all B x F: places [N]. Of cached features none are needed."""
    if part.features is not None:
        return part.frame_mask.new_empty(0, dtype=torch.int64)
    return part.frame_mask.flatten().nonzero().flatten()
