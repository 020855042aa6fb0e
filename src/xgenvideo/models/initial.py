"""Starting values of the trained parameters, each a pure function of its name, its shape and the seed of the run.

So any rank can make the part that it holds, in any layout, and gets what one process alone would have.
"""

import hashlib
import math

import torch
from torch import Tensor

from xgenvideo.config import ModelConfig

Box = tuple[slice, ...]  # the part of a parameter that a rank holds, one slice a dim
LOGIT_SCALE_START = math.log(1 / 0.07)
QUERY_SHARPNESS = 3.0
SLOT_SCALE = 0.02


def starting_value(name: str, shape: torch.Size, config: ModelConfig, seed: int) -> Tensor:
    """The float32 starting value of the parameter `name` (as in `VideoLM.named_parameters`), made on the CPU.

    Matrices are normal with variance 1 / fan-in; outputs of residual branches shrink with depth (GPT-2), so that the
    stream stays O(1). Norms start at one, biases at zero, gates at `gate_start`.
    """
    if name == "logit_scale":
        return torch.full(shape, LOGIT_SCALE_START)
    if name.endswith("_gate.weight"):
        return torch.full(shape, config.decoder.gate_start)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.empty(shape).normal_(std=_deviation(name, shape, config), generator=generator)


def _deviation(name: str, shape: torch.Size, config: ModelConfig) -> float:
    if name in ("decoder.embedding.weight", "resampler.queries", "video_pool.query"):
        return 1.0
    if name == "resampler.slots":
        return SLOT_SCALE
    deviation = 1 / math.sqrt(shape[1])
    part, _, rest = name.partition(".")
    if rest.endswith(("out.weight", "down.weight")):
        decoder, depth = config.decoder, config.resampler.depth
        branches = {"decoder": 2 * (decoder.depth + decoder.cross_blocks), "resampler": 2 * depth}
        deviation /= math.sqrt(branches.get(part, 1))
    # Sharp from the start: queries that average over all patches of all frames learn order only slowly (docs/log.md).
    if part == "resampler" and rest.endswith(".q.weight"):
        deviation *= QUERY_SHARPNESS
    return deviation
