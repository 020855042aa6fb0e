"""Precision of matrix work. Weights, gradients, norms and losses stay float32; bf16 touches matrix products only."""

from contextlib import AbstractContextManager, nullcontext

import torch

from xgenvideo.config import RunConfig


def matrix_precision(config: RunConfig, device: torch.device) -> AbstractContextManager[object]:
    """Autocast to bf16 where `train.precision` says so, otherwise nothing."""
    if config.train.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
