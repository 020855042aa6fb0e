"""The two losses, as pure functions of tensors: next token, and video-text contrastive over the whole batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
PIECES = 8  # of the rows of the logits, in which their loss is computed, but
PIECE_NUMBERS = 1 << 20  # no smaller ones than this: a kernel's own cost would show


class VocabularyPart(NamedTuple):
    """What a rank with logits from id `first` on asks of the ranks that have the others: elementwise largest and sum of
    a tensor over them all.
    """

    first: int
    largest: Callable[[Tensor], Tensor]
    sum: Callable[[Tensor], Tensor]


def next_token_loss(logits: Tensor, targets: Tensor, part: VocabularyPart | None = None) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies and the count of valid targets. logits [B T V], targets [B T], -100 = ignored.

    `part`: this rank has V of the vocabulary's logits; the sum is that of the whole vocabulary. The backward writes the
    gradient over the logits, so it runs once.
    """
    total: Tensor = _TokenLosses.apply(logits.flatten(0, 1), targets.flatten(), part)  # type: ignore[no-untyped-call]
    return total, valid_targets(targets)


class _TokenLosses(torch.autograd.Function):
    """Cross-entropy over rows in at least float32, a piece of the rows at a time, so that of all logits there is one
    tensor, in the type they came in: the idea of Liger-Kernel (arXiv 2410.10989), by torch's own operations.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, part: VocabularyPart | None) -> Tensor:
        """logits [N V], targets [N] -> a sum. Keeps the logits and two numbers a row."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        valid = targets != IGNORED
        places = targets - (part.first if part else 0)
        here = valid & (places >= 0) & (places < logits.shape[1])
        places = places.clamp(0, logits.shape[1] - 1)[:, None]
        right = logits.gather(1, places)[:, 0].to(wide)
        # Of a row's log-probabilities one is enough to know their common term; log_softmax is one kernel.
        pairs = zip(logits.split(_rows(logits)), places.split(_rows(logits)), strict=True)
        own = right - torch.cat([piece.log_softmax(1, wide).gather(1, place) for piece, place in pairs])[:, 0]
        logarithms, right = own, right * here
        if part is not None:
            largest = part.largest(own.clone())
            sums, right = part.sum(torch.stack([(own - largest).exp(), right])).unbind()
            logarithms = sums.log() + largest
        ctx.save_for_backward(logits, places, here.to(wide), (own - logarithms).exp() * valid)
        return (logarithms - right).masked_fill_(~valid, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the logits, in their memory."""
        logits, places, here, share = ctx.saved_tensors
        rows = (logits, places, (here * -gradients[0])[:, None], (share * gradients[0])[:, None])
        for piece, place, of_target, of_row in zip(*(row.split(_rows(logits)) for row in rows), strict=True):
            shares = piece.softmax(1, share.dtype).mul_(of_row)
            piece.copy_(shares.scatter_add_(1, place, of_target))
        return logits, None, None


def _rows(logits: Tensor) -> int:
    """Rows of a piece."""
    return max(-(-len(logits) // PIECES), PIECE_NUMBERS // logits.shape[1], 1)


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
