"""The whole model: frozen encoder, resampler, decoder and the two embeddings of the contrastive loss."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from xgenvideo.config import ModelConfig, RunConfig
from xgenvideo.models.decoder import Decoder, Gate
from xgenvideo.models.resampler import AttentionPool, Resampler
from xgenvideo.models.vision import FrozenVision, encode_video, load_weights, random_seed

LOGIT_SCALE_START = math.log(1 / 0.07)
LOGIT_SCALE_LIMIT = math.log(100.0)
QUERY_SHARPNESS = 3.0


class VideoLM(nn.Module):
    """Video and text in; next-token logits, a video embedding and a text embedding out.

    The text embedding is read from the lower half of the decoder, which never sees the video.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.resampler.width
        self.vision = FrozenVision(config.vision)
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
        at_end = hidden[torch.arange(len(hidden), device=hidden.device), caption_end]
        return functional.normalize(self.text_projection(self.text_norm(at_end)), dim=-1)

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


def build_model(config: RunConfig, device: str | torch.device = "cpu") -> VideoLM:
    """The model of a run, its weights a pure function of the config (seed, sizes, encoder weights)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed(config.model.vision))
        model = VideoLM(config.model)
        torch.manual_seed(config.train.seed)
        initialise(model)
    load_weights(model.vision)
    return model.to(device)


def initialise(model: VideoLM) -> None:
    """Fan-in normal weights; outputs of residual branches shrink with depth (GPT-2), so that the stream stays O(1)."""
    decoder, resampler = model.config.decoder, model.config.resampler
    branches = {"decoder": 2 * (decoder.depth + decoder.cross_blocks), "resampler": 2 * resampler.depth}
    for name, module in model.named_modules():
        if name.startswith("vision"):
            continue
        if isinstance(module, nn.Linear):
            scale = module.in_features**-0.5
            if name.rpartition(".")[2] in ("out", "down"):
                scale /= math.sqrt(branches.get(name.partition(".")[0], 1))
            nn.init.normal_(module.weight, std=scale)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
    for vectors in (model.resampler.queries, model.video_pool.query):
        nn.init.normal_(vectors)
    nn.init.normal_(model.resampler.slots, std=0.02)
    # Sharp from the start: queries that average over all patches of all frames learn order only slowly (docs/log.md).
    for name, parameter in model.resampler.layers.named_parameters():
        if name.endswith(".q.weight"):
            nn.init.normal_(parameter, std=QUERY_SHARPNESS * parameter.shape[1] ** -0.5)


def trainable_state(model: VideoLM) -> dict[str, Tensor]:
    """Every tensor that training changes, by name: all but the frozen encoder."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("vision.")}
