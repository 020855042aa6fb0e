"""The two losses, as pure functions of tensors: next token, and video-text contrastive over the whole batch."""

from torch import Tensor
from torch.nn import functional

IGNORED = -100


def next_token_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies and the count of valid targets. logits [B T V], targets [B T], -100 = ignored."""
    total = functional.cross_entropy(
        logits.flatten(0, 1).float() if logits.dtype.itemsize < 4 else logits.flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return total, valid_targets(targets)


def valid_targets(targets: Tensor) -> Tensor:
    """How many targets [..] are to be predicted."""
    return (targets != IGNORED).sum()


def contrastive_loss(video: Tensor, text: Tensor, logit_scale: Tensor, groups: Tensor) -> Tensor:
    """Two-way InfoNCE (CLIP, arXiv 2103.00020) over N pairs, mean over both directions.

    video and text [N E] unit vectors, logit_scale [1] the logarithm of the temperature's inverse, groups [N]: pairs of
    equal captions share a group and are all counted as right answers (equal shares), never as negatives.
    """
    scores = logit_scale.exp() * video @ text.T
    positive = (groups[:, None] == groups[None, :]).to(scores.dtype)
    shares = positive / positive.sum(dim=1, keepdim=True)
    by_video = -(shares * functional.log_softmax(scores, dim=1)).sum(dim=1)
    by_text = -(shares * functional.log_softmax(scores.T, dim=1)).sum(dim=1)
    return (by_video.mean() + by_text.mean()) / 2


def sigmoid_contrastive_loss(video: Tensor, text: Tensor, logit_scale: Tensor, groups: Tensor) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, arXiv 2303.15343), mean over pairs; arguments as `contrastive_loss`.

    The bias that SigLIP learns is fixed at minus the logarithm of the number of negatives a positive: its optimum at
    the start of training.
    """
    count = len(video)
    scores = logit_scale.exp() * video @ text.T
    positive = groups[:, None] == groups[None, :]
    bias = (~positive).sum().clamp(min=1).to(scores.dtype).log() - positive.sum().to(scores.dtype).log()
    signs = positive.to(scores.dtype) * 2 - 1
    return -functional.logsigmoid(signs * (scores - bias)).sum() / count
