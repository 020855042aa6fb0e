"""A judge of pictures that the user brings: an image classification model on disk, for watermarks or for aesthetics."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xgenvideo.errors import ConfigError


class PictureClassifier:
    """A model of transformers' `AutoModelForImageClassification`: the chance of one label, or the output of a model
    that has a single one. Nothing is downloaded, weights are read from safetensors only, no code of the folder runs.
    """

    def __init__(self, folder: Path, label: str, setting: str) -> None:
        """`setting` is what errors name. Raises ConfigError for a folder without such a model or label."""
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        asked = f"curate.{setting}"
        try:
            self._model = AutoModelForImageClassification.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
            ).eval()
            processors: Any = AutoImageProcessor
            self._processor = processors.from_pretrained(
                folder, local_files_only=True, backend="pil", trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            why = f"is no image classification model in safetensors with its preprocessor_config.json ({error})"
            raise ConfigError(asked, str(folder), why) from error
        names = {number: str(name).lower() for number, name in self._model.config.id2label.items()}
        self._place: int | None = None
        if len(names) > 1:
            places = [number for number, name in names.items() if name == label.lower()]
            if len(places) != 1:
                name = asked.replace("_model", "_label")
                raise ConfigError(name, label, f"is no label of the model in {folder}", sorted(names.values()))
            self._place = places[0]

    @torch.inference_mode()
    def score(self, frames: list[NDArray[np.uint8]]) -> float:
        """Mean over frames [H W 3] RGB of the label's chance (0-1), or of the model's only output as it is."""
        pictures = self._processor(images=frames, return_tensors="pt", input_data_format="channels_last")
        outputs = self._model(pixel_values=pictures["pixel_values"]).logits.float()
        chosen = outputs[:, 0] if self._place is None else outputs.softmax(dim=-1)[:, self._place]
        return float(chosen.mean())
