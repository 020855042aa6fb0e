"""The model of a run folder, as training left it: what evaluation and export start from."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xgenvideo.checkpoint.load import load, newest_verified
from xgenvideo.config import RunConfig
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.data.tokenizer import load as load_tokenizer
from xgenvideo.errors import CheckpointError
from xgenvideo.models.video_lm import VideoLM, build_model, trainable_state
from xgenvideo.models.vision import encoder_hash

CHECKPOINTS = "checkpoints"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, repr=False)
class Run:
    """A trained model with what it needs, from the newest verified checkpoint of a run folder."""

    model: VideoLM
    config: RunConfig
    tokenizer: Tokenizer
    step: int
    checkpoint: Path

    def __repr__(self) -> str:
        return f"Run({self.config.name}, step={self.step}, {self.checkpoint})"


def load_run(out: Path, device: str | torch.device = "cpu") -> Run:
    """The model of the newest verified checkpoint below the run folder `out`, in evaluation mode.

    Raises CheckpointError: no usable checkpoint, or the frozen encoder on this machine is not the run's.
    """
    path = newest_verified(out / CHECKPOINTS)
    snapshot = load(path, parts=("model",))
    model = build_model(snapshot.config, device)
    check_encoder(path, snapshot.state.get("encoder_hash"), encoder_hash(model.vision))
    restore_weights(path, model, snapshot.tensors["model"])
    return Run(model.eval(), snapshot.config, load_tokenizer(out / TOKENIZER), snapshot.step, path)


def restore_weights(path: Path, model: VideoLM, tensors: dict[str, Tensor]) -> None:
    """Copy the trained tensors into `model`, bit for bit. Raises CheckpointError for a name or shape that differs."""
    own = trainable_state(model)
    different = sorted(set(own) ^ set(tensors))
    different += [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if different:
        raise CheckpointError(f"{path}: is not of this model; names or shapes differ: {', '.join(different[:5])}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def check_encoder(path: Path, saved: object, own: str) -> None:
    """Refuse a checkpoint that was trained with another frozen encoder, which it names by its hash."""
    if saved != own:
        cure = "give model.vision.weights the encoder that the run was trained with"
        raise CheckpointError(f"{path}: was trained with the frozen encoder {saved}, this one is {own}; {cure}")
