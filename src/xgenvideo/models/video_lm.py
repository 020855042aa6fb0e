"""The whole model: frozen encoder, resampler, decoder and the two embeddings of the contrastive loss."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from xgenvideo.config import ModelConfig, RunConfig
from xgenvideo.models.decoder import Decoder, Gate
from xgenvideo.models.initial import LOGIT_SCALE_START, starting_value
from xgenvideo.models.resampler import AttentionPool, Resampler
from xgenvideo.models.vision import build_vision, encode_video, frozen_vision

LOGIT_SCALE_LIMIT = math.log(100.0)


class VideoLM(nn.Module):
    """Video and text in; next-token logits, a video embedding and a text embedding out.

    The text embedding is read from the lower half of the decoder, which never sees the video.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.resampler.width
        self.vision = frozen_vision(config.vision)
        self.resampler = Resampler(config.resampler, config.vision.width)
        self.video_pool = AttentionPool(width, config.resampler.heads)
        self.video_projection = nn.Linear(width, config.embedding, bias=False)
        self.decoder = Decoder(config.decoder, width)
        self.text_norm = nn.RMSNorm(config.decoder.width, eps=config.decoder.norm_eps)
        self.text_projection = nn.Linear(config.decoder.width, config.embedding, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor([LOGIT_SCALE_START]))

    def encode_frames(self, frames: Tensor) -> Tensor:
        """frames [N 3 S S] or [B F 3 S S] uint8 -> features [N P Wv] or [B F P Wv], without gradient."""
        features: Tensor = encode_video(self.vision, frames) if frames.ndim == 5 else self.vision(frames)
        return features

    def latents(self, features: Tensor, pts: Tensor, frame_mask: Tensor) -> Tensor:
        """features [B F P Wv], pts [B F] seconds, frame_mask [B F] -> latents [B Q Dr]."""
        result: Tensor = self.resampler(features, pts, frame_mask)
        return result

    def video_embedding(self, latents: Tensor) -> Tensor:
        """latents [B Q Dr] -> unit vectors [B E]."""
        return functional.normalize(self.video_projection(self.video_pool(latents)), dim=-1)

    def text_embedding(self, tokens: Tensor, positions: Tensor, documents: Tensor, caption_end: Tensor) -> Tensor:
        """tokens, positions, documents [B T], caption_end [B] index of <|endofcaption|> -> unit vectors [B E]."""
        return self._embed_text(self.decoder.lower(tokens, positions, documents), caption_end)

    def _embed_text(self, hidden: Tensor, caption_end: Tensor) -> Tensor:
        return unit_text_embedding(AtCaptionEnd()(hidden, caption_end), self.text_norm, self.text_projection)

    def logits(
        self, tokens: Tensor, positions: Tensor, documents: Tensor, latents: Tensor | None, sees_video: Tensor
    ) -> Tensor:
        """Next-token logits [B T V]; `latents` [B Q Dr] or None for text alone, sees_video [B T]."""
        hidden = self.decoder.lower(tokens, positions, documents)
        result: Tensor = self.decoder.head(self.decoder.upper(hidden, positions, documents, latents, sees_video))
        return result

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        documents: Tensor,
        caption_end: Tensor,
        latents: Tensor | None,
        sees_video: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Logits [B T V] and text embedding [B E] in one pass; arguments as for `logits` and `text_embedding`."""
        hidden = self.decoder.lower(tokens, positions, documents)
        embedding = self._embed_text(hidden, caption_end)
        logits = self.decoder.head(self.decoder.upper(hidden, positions, documents, latents, sees_video))
        return logits, embedding

    def gates(self) -> dict[str, float]:
        """tanh of every gate by name: how far each cross block has opened. Waits for the device."""
        named = self.decoder.cross.named_modules()
        return {name: float(gate.weight.detach().tanh()) for name, gate in named if isinstance(gate, Gate)}


class AtCaptionEnd(nn.Module):
    """Picks the hidden state at each caption's end. A module, so that a cut sequence can be put together before it."""

    def forward(self, hidden: Tensor, caption_end: Tensor) -> Tensor:
        """hidden [B T D], caption_end [B] -> [B D]."""
        return hidden[torch.arange(len(hidden), device=hidden.device), caption_end]


def unit_text_embedding(at_end: Tensor, norm: nn.Module, projection: nn.Module) -> Tensor:
    """Hidden states [B D] at the ends of captions -> unit vectors [B E]."""
    return functional.normalize(projection(norm(at_end)), dim=-1)


def build_model(config: RunConfig, device: str | torch.device = "cpu") -> VideoLM:
    """The model of a run, its weights a pure function of the config (seed, sizes, encoder weights)."""
    with torch.device("meta"):
        model = VideoLM(config.model)
    model.vision = build_vision(config.model.vision)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            module = model.get_submodule(name.rpartition(".")[0])
            value = starting_value(name, parameter.shape, config.model, config.train.seed)
            setattr(module, name.rpartition(".")[2], nn.Parameter(value))
    return model.to(device)


def trainable_state(model: VideoLM) -> dict[str, Tensor]:
    """Every tensor that training changes, by name: all but the frozen encoder."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vision.")}
