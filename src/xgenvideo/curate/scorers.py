"""Other judges of whether a caption fits its clip: a CLIP or SigLIP checkpoint on disk, or a release of our own.

Nothing is downloaded, and weights are read from safetensors only.
"""

import json
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.curate.clips import Clip, decode_jpeg
from xgenvideo.errors import ConfigError
from xgenvideo.infer.embed import embed_text
from xgenvideo.infer.release import DESCRIPTION, Release, load_release
from xgenvideo.records import SampledVideo

Vectors = NDArray[np.float32]
BATCH = 32


class PairScorer(Protocol):
    """Embeds captions, and says how near a clip is to one of them (higher is nearer)."""

    def embed(self, texts: list[str]) -> Vectors:
        """[N D] of N captions."""

    def see_clip(self, clip: Clip, frames: int) -> Vectors:
        """What a clip shows, looking at that many frames where the judge sees single frames."""

    def score(self, seen: Vectors, caption: Vectors) -> float:
        """Of what a clip shows and one caption's vector [D]."""


def open_scorer(path: str) -> PairScorer:
    """The judge in a folder: a release (it has release.json), or a CLIP or SigLIP model as transformers saves it.

    Raises ConfigError for a folder that is neither, ReleaseError for a damaged release.
    """
    folder = Path(path)
    if (folder / DESCRIPTION).exists():
        return ReleaseScorer(load_release(folder))
    return ClipScorer(folder)


class ClipScorer:
    """Cosine between the mean of a few frames' embeddings and the caption's."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        try:
            kind = str(AutoConfig.from_pretrained(folder, local_files_only=True).model_type)
            if kind not in ("clip", "siglip"):
                raise ValueError(f"its model_type is {kind!r}, not clip or siglip")
            self._model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            values = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            why = f"is no CLIP or SigLIP model in safetensors with its tokenizer and preprocessor_config.json ({error})"
            raise ConfigError("curate.align_model", str(folder), why) from error
        self._side = int(self._model.config.vision_config.image_size)
        self._longest = int(self._model.config.text_config.max_position_embeddings)
        self._mean, self._std = (np.array(values[name], np.float32) for name in ("image_mean", "image_std"))
        self._cut = kind == "clip"  # SigLIP squeezes the whole frame into a square
        # SigLIP was trained on texts filled up to their full length, CLIP reads up to the end mark.
        self._padding: bool | str = True if kind == "clip" else "max_length"

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> Vectors:
        """Unit vectors [N D]."""
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = self._tokenizer(
                texts[start : start + BATCH], padding=self._padding, truncation=True, max_length=self._longest,
                return_tensors="pt",
            )  # fmt: skip
            parts.append(_unit(self._model.get_text_features(**batch)))
        return np.concatenate(parts)

    @torch.inference_mode()
    def see_clip(self, clip: Clip, frames: int) -> Vectors:
        """Mean [D] of the unit vectors of a few frames, of length 1."""
        pictures = np.stack([self._prepare(frame) for frame in clip.frames(frames)])
        seen = _unit(self._model.get_image_features(pixel_values=torch.from_numpy(pictures))).mean(axis=0)
        return np.asarray(seen / max(1e-9, float(np.linalg.norm(seen))), np.float32)

    def score(self, seen: Vectors, caption: Vectors) -> float:
        """Cosine of the mean frame and the caption, -1..1."""
        return float(seen @ caption)

    def _prepare(self, frame: NDArray[np.uint8]) -> Vectors:
        """[3 S S] of a frame [H W 3]."""
        height, width = frame.shape[:2]
        if self._cut:
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            frame = frame[top : top + side, left : left + side]
        shrinks = min(frame.shape[:2]) > self._side
        how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        square = cv2.resize(frame, (self._side, self._side), interpolation=how).astype(np.float32) / 255
        return np.ascontiguousarray(((square - self._mean) / self._std).transpose(2, 0, 1), np.float32)


class ReleaseScorer:
    """Inner product of our own model's video and text embeddings: a trained release curates for the next one."""

    def __init__(self, release: Release) -> None:
        self._release = release

    def embed(self, texts: list[str]) -> Vectors:
        """Unit vectors [N E]."""
        return np.stack([embed_text(self._release, text) for text in texts])

    def see_clip(self, clip: Clip, frames: int) -> Vectors:
        """Unit vector [E] of all frames, as many as the model takes."""
        most = self._release.config.data.frames
        pictures = np.stack([decode_jpeg(jpeg) for jpeg in clip.jpegs[:most]])
        sampled = SampledVideo(pictures, clip.pts[:most], np.arange(len(pictures)), float(clip.pts[-1]))
        seen = self._release.read_window(self._release.window(0, sampled))[1]
        return np.asarray(seen.float().cpu().numpy(), np.float32)

    def score(self, seen: Vectors, caption: Vectors) -> float:
        """Inner product, -1..1."""
        return float(seen @ caption)


def _unit(found: Any) -> Vectors:
    """Rows [N D] of length 1; newer transformers wrap what older ones return."""
    rows: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return np.asarray(torch.nn.functional.normalize(rows.float(), dim=-1).numpy(), np.float32)
