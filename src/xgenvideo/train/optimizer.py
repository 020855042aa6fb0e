"""AdamW, its groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import Tensor

from xgenvideo.config import OptimizerConfig, RunConfig
from xgenvideo.errors import CheckpointError
from xgenvideo.models.video_lm import LOGIT_SCALE_LIMIT, VideoLM

# Learned vectors that are matrices in memory; decaying them would pull them to zero for no reason.
LEARNED_VECTORS = ("resampler.queries", "resampler.slots")


def trained_parameters(model: VideoLM) -> dict[str, torch.nn.Parameter]:
    """Every parameter that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_gate(name: str) -> bool:
    """Whether a parameter is the scalar of a tanh gate."""
    return name.endswith("_gate.weight")


def decays(name: str, parameter: Tensor) -> bool:
    """Weight decay is for matrices: not for gates, norms, biases, queries, slot embeddings, logit scale."""
    return parameter.ndim > 1 and name not in LEARNED_VECTORS


def build_optimizer(model: VideoLM, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters in three groups: decayed, not decayed, gates (with their own learning rate)."""
    named = trained_parameters(model)
    gates = [parameter for name, parameter in named.items() if is_gate(name)]
    matrices = [parameter for name, parameter in named.items() if decays(name, parameter)]
    vectors = [parameter for name, parameter in named.items() if not decays(name, parameter) and not is_gate(name)]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay, "lr_scale": 1.0},
            {"params": vectors, "weight_decay": 0.0, "lr_scale": 1.0},
            {"params": gates, "weight_decay": 0.0, "lr_scale": config.gate_lr_scale},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of step 0 to steps - 1: linear up over the warm-up, then a cosine that ends at its floor."""
    warmup_steps = round(config.warmup_fraction * steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    progress = (step + 1 - warmup_steps) / max(1, steps - warmup_steps)
    floor = config.min_lr_fraction
    return config.lr * (floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: RunConfig, step: int) -> float:
    """Give every group its learning rate for `step`; returns the one of the matrices."""
    lr = learning_rate(config.optimizer, step, config.train.steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
    return lr


def clip_gradients(model: VideoLM, limit: float) -> Tensor:
    """Scale all gradients together so that their norm is at most `limit`; returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(trained_parameters(model).values(), limit, foreach=True)


@torch.no_grad()
def clamp_logit_scale(model: VideoLM) -> None:
    """Keep the contrastive temperature between 1 and 1/100 (CLIP, arXiv 2103.00020, section 2.5)."""
    model.logit_scale.clamp_(0.0, LOGIT_SCALE_LIMIT)


def optimizer_tensors(model: VideoLM, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors named PARAMETER/exp_avg and so on; no numbering, so a layout may change."""
    named = trained_parameters(model)
    return {
        f"{name}/{kind}": tensor
        for name, parameter in named.items()
        for kind, tensor in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(model: VideoLM, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Take back what `optimizer_tensors` gave. Raises CheckpointError for state of an unknown parameter or shape."""
    named = trained_parameters(model)
    optimizer.state.clear()
    for full_name, tensor in tensors.items():
        name, _, kind = full_name.rpartition("/")
        if name not in named or (kind != "step" and named[name].shape != tensor.shape):
            raise CheckpointError(f"optimizer state {full_name} {list(tensor.shape)} fits no parameter of this model")
        # AdamW keeps its step counter wherever it made it; fused kernels want it beside the parameter.
        optimizer.state[named[name]][kind] = tensor.to(named[name].device)
