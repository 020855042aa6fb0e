"""Videos and questions to a released model's inputs: AutoProcessor.from_pretrained(RELEASE, trust_remote_code=True).

A video is decoded with PyAV and sampled by its timestamps, as in training; torchvision is not needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from xgenvideo.data.frames import fit_square
from xgenvideo.data.video import sample_windows

Video = str | Path | tuple[NDArray[np.uint8], NDArray[np.float64]]


class XGenVideoProcessor(ProcessorMixin):
    """Windows of `frames_per_window` frames at `fps`, squares of `image_size` pixels, and left-padded texts."""

    def __init__(
        self,
        tokenizer: Any,
        fps: float = 2.0,
        frames_per_window: int = 64,
        short_side: int = 256,
        image_size: int = 224,
        chat_template: str | None = None,
        **about: Any,
    ) -> None:
        self.fps, self.frames_per_window = fps, frames_per_window
        self.short_side, self.image_size = short_side, image_size
        super().__init__(tokenizer, chat_template=chat_template)  # type: ignore[no-untyped-call]

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        videos: Video | Sequence[Video] | None = None,
        **unused: Any,
    ) -> BatchFeature:
        """Texts as the model's prompts ("" writes a caption) and a video for each: a file, or (frames, seconds).

        frames [N H W 3] uint8 RGB with their seconds [N], already sampled. Returns input_ids and attention_mask [B T],
        pixel_values_videos [B W F 3 S S] uint8, video_seconds [B W F] and video_frame_mask [B W F]. Raises ValueError
        for videos of unequal numbers of windows: give them one at a time.
        """
        found: dict[str, Tensor] = {}
        if text is not None:
            prompts = [text] if isinstance(text, str) else list(text)
            found |= dict(self.tokenizer(prompts, padding=True, return_tensors="pt"))
            found.pop("token_type_ids", None)
        if videos is not None:
            frames_and_seconds = isinstance(videos, tuple) and isinstance(videos[0], np.ndarray)
            single = isinstance(videos, str | Path) or frames_and_seconds
            found |= self._videos([cast(Video, videos)] if single else list(cast(Sequence[Video], videos)))
        return BatchFeature(found)

    def _videos(self, videos: Sequence[Video]) -> dict[str, Tensor]:
        read = [self._windows(video) for video in videos]
        if len({len(windows) for windows in read}) > 1:
            counts = [len(windows) for windows in read]
            raise ValueError(f"videos of {counts} windows do not make one batch: give them one at a time")
        longest = max(len(seconds) for windows in read for _, seconds in windows)
        shape, size = (len(read), len(read[0]), longest), self.image_size
        frames = torch.zeros((*shape, 3, size, size), dtype=torch.uint8)
        times, real = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        for row, windows in enumerate(read):
            for number, (pictures, seconds) in enumerate(windows):
                count = len(seconds)
                frames[row, number, :count] = pictures
                times[row, number, :count] = seconds
                real[row, number, :count] = True
        return {"pixel_values_videos": frames, "video_seconds": times, "video_frame_mask": real}

    def _windows(self, video: Video) -> list[tuple[Tensor, Tensor]]:
        """Windows of one video, each as squares [F 3 S S] uint8 and seconds [F]."""
        if isinstance(video, str | Path):
            taken = sample_windows(Path(video), self.fps, self.frames_per_window, self.short_side)
            return [(self._squares(window.frames), torch.from_numpy(window.pts).float()) for window in taken]
        frames, seconds = video
        length = self.frames_per_window
        cuts = range(0, len(frames), length)
        return [
            (self._squares(frames[at : at + length]), torch.as_tensor(seconds[at : at + length]).float()) for at in cuts
        ]

    def _squares(self, frames: NDArray[np.uint8]) -> Tensor:
        squares = np.stack([fit_square(frame, self.image_size) for frame in frames])
        return torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2)))

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, **kwargs: Any
    ) -> Any:
        """The prompt of a conversation with one question; with tokenize=True, the inputs with the videos it names."""
        tokenize, unused = kwargs.pop("tokenize", False), kwargs.pop("return_dict", None)
        del unused
        several = bool(conversation) and isinstance(conversation[0], list | tuple)
        talks = conversation if several else [conversation]
        template = chat_template or self.chat_template
        prompts = [
            self.tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=True)
            for talk in talks
        ]
        if not tokenize:
            return prompts if several else prompts[0]
        videos = [video for talk in talks for video in _videos_of(talk)]
        return self(text=prompts, videos=videos or None)

    def post_process_text(self, ids: Tensor, prompt_tokens: int) -> list[str]:
        """The texts written after prompts of `prompt_tokens` tokens; ids [B T] as `generate` returns them."""
        written: list[str] = self.tokenizer.batch_decode(ids[:, prompt_tokens:], skip_special_tokens=True)
        return [text.strip() for text in written]


def _videos_of(talk: Sequence[dict[str, Any]]) -> list[Video]:
    """The videos that the messages of one conversation name, under the keys that transformers knows."""
    parts = [part for message in talk if isinstance(message["content"], list) for part in message["content"]]
    found = [part for part in parts if part.get("type") == "video"]
    return [part.get("video") or part.get("path") or part["url"] for part in found]
