"""AdamW in three groups, the learning rate as a pure function of the step, and clipping by the global norm."""

import math

import torch
from torch import Tensor, nn

from xgenvideo.config import OptimizerConfig, RunConfig
from xgenvideo.models.decoder import Gate
from xgenvideo.models.video_lm import VideoLM


class TrainOptimizer:
    """AdamW over the trainable parameters of a model, by name, so that its state can be saved by name."""

    def __init__(self, model: VideoLM, config: RunConfig) -> None:
        self.config, self.steps = config.optimizer, config.train.steps
        self.named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        gates, plain, decayed = _groups(model, self.named)
        self.adamw = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": self.config.weight_decay, "lr_scale": 1.0},
                {"params": plain, "weight_decay": 0.0, "lr_scale": 1.0},
                {"params": gates, "weight_decay": 0.0, "lr_scale": self.config.gate_lr_scale},
            ],
            lr=self.config.lr,
            betas=(self.config.beta1, self.config.beta2),
            eps=self.config.eps,
            fused=True,
        )

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def clip(self, limit: float) -> Tensor:
        """Scale all gradients so that their joint norm is at most `limit`; returns the norm before."""
        return nn.utils.clip_grad_norm_(list(self.named.values()), limit)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, without the gates' scale."""
        return learning_rate(self.config, self.steps, step)

    def step(self, step: int) -> None:
        """Update the weights with the gradients there are, at the learning rate of `step`."""
        lr = self.learning_rate(step)
        for group in self.adamw.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.adamw.step()

    def state(self) -> dict[str, Tensor]:
        """Everything AdamW remembers, as NAME.exp_avg, NAME.exp_avg_sq and NAME.step."""
        return {
            f"{name}.{part}": value
            for name, parameter in self.named.items()
            for part, value in self.adamw.state[parameter].items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave. A state of no step is empty."""
        for name, parameter in self.named.items():
            found = {part: state[f"{name}.{part}"] for part in ("step", "exp_avg", "exp_avg_sq") if state}
            if found:
                self.adamw.state[parameter] = {part: value.to(parameter.device) for part, value in found.items()}


def _groups(
    model: VideoLM, named: dict[str, nn.Parameter]
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Gates; what is not decayed (norms, queries, slots, logit scale); what is (matrices)."""
    gate_ids = {id(module.weight) for module in model.modules() if isinstance(module, Gate)}
    gates, plain, decayed = [], [], []
    for name, parameter in named.items():
        if id(parameter) in gate_ids:
            gates.append(parameter)
        elif parameter.ndim < 2 or name in ("resampler.queries", "resampler.slots"):
            plain.append(parameter)
        else:
            decayed.append(parameter)
    return gates, plain, decayed


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """Linear warm-up over `warmup_fraction` of `steps`, then a cosine to `lr * min_lr_fraction` at the last step."""
    warmup = math.ceil(config.warmup_fraction * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    floor = config.min_lr_fraction
    return config.lr * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
