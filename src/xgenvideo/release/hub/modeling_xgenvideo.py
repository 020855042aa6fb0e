"""The released model for transformers: AutoModelForCausalLM.from_pretrained(RELEASE, trust_remote_code=True).

It has the trained model's own parts under their own names and runs its own blocks; only the cache is transformers'.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from xgenvideo.config import DecoderConfig, ModelConfig, ResamplerConfig, RopeScaling, VisionConfig
from xgenvideo.data.tokenizer import CAPTION_END
from xgenvideo.models.decoder import CrossBlock, Decoder, SelfBlock
from xgenvideo.models.layers import attend, document_mask, rotary, rotate
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.release.hub.configuration_xgenvideo import XGenVideoConfig

VIDEO_INPUTS = ("pixel_values_videos", "video_seconds", "video_frame_mask")


class XGenVideoForConditionalGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """Text about a video. Inputs are what XGenVideoProcessor returns."""

    config_class = XGenVideoConfig
    # No weight may begin with it: transformers takes such a prefix off, or puts it on, and drops what then differs.
    base_model_prefix = "xgenvideo"
    _supports_sdpa = True

    def __init__(self, config: XGenVideoConfig) -> None:
        super().__init__(config)
        network = VideoLM(_model_config(config.model))
        for name, part in network.named_children():
            self.add_module(name, part)
        for name, parameter in network.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self._no_split_modules = ["SelfBlock", "CrossBlock", "ResamplerLayer", "CLIPEncoderLayer"]
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def _network(self) -> VideoLM:
        """Itself: it has every part that VideoLM's methods use."""
        return cast(VideoLM, self)

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self._network.decoder.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self._network.decoder.head

    def get_video_latents(
        self, pixel_values_videos: Tensor, video_seconds: Tensor, video_frame_mask: Tensor, from_start: bool = True
    ) -> Tensor:
        """Frames [B W F 3 S S] uint8, seconds and mask [B W F] -> latents [B W*Q Dr], one window at a time.

        Times count from the start of the video, or from each window's own with `from_start` False.
        """
        rows = []
        for frames, seconds, real in zip(pixel_values_videos, video_seconds, video_frame_mask.bool(), strict=True):
            windows = []
            for number, count in enumerate(real.sum(dim=-1).tolist()):
                times = seconds[number, :count]
                times = (times if from_start else times - times[0])[None]
                features = self._network.vision(frames[number, :count])[None]
                windows.append(self._network.resampler(features, times, torch.ones_like(times, dtype=torch.bool)))
            rows.append(torch.cat(windows, dim=1))
        return torch.cat(rows)

    def get_video_features(
        self, pixel_values_videos: Tensor, video_seconds: Tensor, video_frame_mask: Tensor
    ) -> Tensor:
        """Unit vectors [B W E], one a window; arguments as for `get_video_latents`."""
        latents = self.get_video_latents(pixel_values_videos, video_seconds, video_frame_mask, from_start=False)
        windows = latents.unflatten(1, (pixel_values_videos.shape[1], -1))
        vectors = [VideoLM.video_embedding(self._network, windows[:, i]) for i in range(windows.shape[1])]
        return torch.stack(vectors, dim=1)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Captions [B T] that end in <|endofcaption|> -> unit vectors [B E], to compare with video features."""
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        end = (input_ids == CAPTION_END).int().argmax(dim=-1)
        hidden = self._network.decoder.lower(input_ids, _positions(real), torch.where(real.bool(), 0, -1))
        return VideoLM._embed_text(self._network, hidden, end)

    def read_video(self, pixel_values_videos: Tensor, video_seconds: Tensor, video_frame_mask: Tensor) -> Tensor:
        """Arguments of `get_video_latents` -> keys and values [B C 2 K N hd] for the C cross blocks, once a video."""
        latents = self.get_video_latents(pixel_values_videos, video_seconds, video_frame_mask)
        blocks = [cast(CrossBlock, block) for block in self._network.decoder.cross.values()]
        return torch.stack([torch.stack(block.read_latents(latents), dim=1) for block in blocks], dim=1)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        pixel_values_videos: Tensor | None = None,
        video_seconds: Tensor | None = None,
        video_frame_mask: Tensor | None = None,
        video_memory: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **unused: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids [B T] after those in the cache, attention_mask [B used+T] -> logits; without video, of text alone.

        `video_memory` is what `read_video` returns; `labels` [B T], -100 where nothing is to be learnt.
        """
        if pixel_values_videos is not None:
            if video_seconds is None or video_frame_mask is None:
                raise ValueError(f"a video needs all of {VIDEO_INPUTS}, as XGenVideoProcessor returns them")
            video_memory = self.read_video(pixel_values_videos, video_seconds, video_frame_mask)
        hidden = self._decode(input_ids, attention_mask, past_key_values, video_memory)
        logits = self._network.decoder.head(hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def _decode(self, tokens: Tensor, real: Tensor | None, cache: Cache | None, video: Tensor | None) -> Tensor:
        """tokens [B T], real [B used+T] or None -> normed hidden states [B T D]."""
        decoder: Decoder = self._network.decoder
        used, count = (0 if cache is None else int(cache.get_seq_length())), tokens.shape[1]
        real = tokens.new_ones(len(tokens), used + count) if real is None else real
        cos, sin = rotary(_positions(real)[:, used:], decoder.config)
        # Padding is a document of its own: no token of a text looks at it.
        last = count == 1 and used
        mask = (real.bool()[:, None, None] if last else document_mask(torch.where(real.bool(), 0, -1)))[:, :, -count:]
        sees_video = real[:, used:].bool()
        x: Tensor = decoder.embedding(tokens)
        order = {name: number for number, name in enumerate(decoder.cross)}
        for name, block in decoder.layers.items():
            if video is not None and name in order:
                keys, values = video[:, order[name]].unbind(1)
                x = cast(CrossBlock, decoder.cross[name]).attend_to(x, (keys, values), sees_video)
            if cache is None:
                x = block(x, cos, sin, mask)
            else:
                x = _cached(cast(SelfBlock, block), x, cos, sin, mask, cache, int(name))
        result: Tensor = decoder.norm(x)
        return result

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, the video read once before the first token instead of in each step."""
        if kwargs.get(VIDEO_INPUTS[0]) is not None:
            with torch.no_grad():
                kwargs["video_memory"] = self.read_video(*(kwargs.pop(name) for name in VIDEO_INPUTS))
        own: Any = super()
        return own.generate(*args, **kwargs)


def _model_config(values: dict[str, Any]) -> ModelConfig:
    """The sections of the config as this program's records."""
    decoder = values["decoder"] | {"rope_scaling": RopeScaling(**values["decoder"]["rope_scaling"])}
    parts = {
        "vision": VisionConfig(**values["vision"]),
        "resampler": ResamplerConfig(**values["resampler"]),
        "decoder": DecoderConfig(**decoder),
    }
    return ModelConfig(**values | parts)


def _positions(real: Tensor) -> Tensor:
    """Positions [B T] that count from each text's first token; real [B T]."""
    return (real.long().cumsum(dim=-1) - 1).clamp(min=0)


def _cached(block: SelfBlock, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: Cache, layer: int) -> Tensor:
    """`SelfBlock.forward` whose earlier keys and values are in transformers' cache; x [B T D] -> [B T D]."""
    normed = block.attention_norm(x)
    q, k, v = (
        part.unflatten(-1, (-1, block.head_size)).transpose(1, 2)
        for part in (block.q(normed), block.k(normed), block.v(normed))
    )
    keys, values = cache.update(rotate(block.k_norm(k), cos, sin), v, layer)
    x = x + block.out(attend(rotate(block.q_norm(q), cos, sin), keys, values, mask))
    result: Tensor = x + block.mlp(block.mlp_norm(x))
    return result
