"""AdamW, its groups, and the learning rate as a pure function of the step."""

import math

import torch
from torch import Tensor

from xgenvideo.config import OptimizerConfig, RunConfig
from xgenvideo.models.video_lm import LOGIT_SCALE_LIMIT, VideoLM
from xgenvideo.parallel.shards import Piece, total_norm
from xgenvideo.parallel.world import World

# Learned vectors that are matrices in memory; decaying them would pull them to zero for no reason.
LEARNED_VECTORS = ("resampler.queries", "resampler.slots")


def is_gate(name: str) -> bool:
    """Whether a parameter is the scalar of a tanh gate."""
    return name.endswith("_gate.weight")


def decays(name: str, shape: torch.Size) -> bool:
    """Weight decay is for matrices: not for gates, norms, biases, queries, slot embeddings, logit scale."""
    return len(shape) > 1 and name not in LEARNED_VECTORS


def build_optimizer(pieces: list[Piece], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over this rank's pieces in three groups: decayed, not decayed, gates (with their own learning rate).

    Its state is there from the start, at zero, so that a checkpoint can be read into it.
    """
    gates = [piece.local for piece in pieces if is_gate(piece.name)]
    matrices = [piece.local for piece in pieces if decays(piece.name, piece.shape)]
    vectors = [piece.local for piece in pieces if not decays(piece.name, piece.shape) and not is_gate(piece.name)]
    optimizer = torch.optim.AdamW(
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
    for piece in pieces:
        state = optimizer.state[piece.local]
        state["step"] = torch.zeros((), dtype=torch.float32, device=piece.local.device)
        state["exp_avg"] = torch.zeros_like(piece.local, requires_grad=False)
        state["exp_avg_sq"] = torch.zeros_like(piece.local, requires_grad=False)
    return optimizer


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


def clip_gradients(pieces: list[Piece], limit: float, world: World) -> Tensor:
    """Scale all gradients of the model together so that their norm is at most `limit`; returns the norm before.

    The norm is over all ranks and both worlds, what several ranks hold alike counted once.
    """
    for piece in pieces:
        piece.take_gradient()
    norm = total_norm(pieces, world)
    torch.nn.utils.clip_grads_with_norm_([piece.local for piece in pieces], limit, norm, foreach=True)
    return norm


@torch.no_grad()
def clamp_logit_scale(model: VideoLM) -> None:
    """Keep the contrastive temperature between 1 and 1/100 (CLIP, arXiv 2103.00020, section 2.5)."""
    model.logit_scale.clamp_(0.0, LOGIT_SCALE_LIMIT)


def model_tensors(pieces: list[Piece]) -> dict[str, Tensor]:
    """The trained weights by name, each as the part of a whole that this rank has; the memory is shared."""
    return {piece.name: piece.parameter.detach() for piece in pieces}


def optimizer_tensors(pieces: list[Piece], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors named PARAMETER/exp_avg and so on; no numbering, so a layout may change.

    Each is the part of a whole that this rank has; the memory is shared, so reading into them restores the optimizer.
    """
    return {
        f"{piece.name}/{kind}": piece.like(tensor) if kind != "step" else tensor
        for piece in pieces
        for kind, tensor in optimizer.state[piece.local].items()
    }
