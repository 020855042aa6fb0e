"""The losses against plain arithmetic."""

import math

import torch
from torch.nn import functional

from xgenvideo.objectives import IGNORED, contrastive_loss, next_token_loss, sigmoid_contrastive_loss


def unit(rows: int, seed: int) -> torch.Tensor:
    """Random unit vectors [rows 16] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, 16, dtype=torch.float64, generator=generator), dim=-1)


def test_next_token_loss_counts_valid_targets_only() -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1, IGNORED, 4], [IGNORED, IGNORED, 0]])
    total, count = next_token_loss(logits, targets)
    by_hand = -sum(
        float(logits[row, column].log_softmax(-1)[targets[row, column]]) for row, column in ((0, 0), (0, 2), (1, 2))
    )
    assert count == 3
    assert math.isclose(float(total), by_hand, rel_tol=1e-12)


def test_contrastive_loss_is_clip_when_captions_differ() -> None:
    video, text, scale = unit(6, 1), unit(6, 2), torch.tensor([math.log(20.0)], dtype=torch.float64)
    scores = 20 * video @ text.T
    labels = torch.arange(6)
    clip = (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)) / 2
    torch.testing.assert_close(contrastive_loss(video, text, scale, torch.arange(6)), clip, rtol=1e-12, atol=0)


def test_equal_captions_are_no_negatives() -> None:
    video, scale = unit(4, 1), torch.tensor([3.0], dtype=torch.float64)
    text = unit(2, 2).repeat_interleave(2, dim=0)
    groups = torch.tensor([7, 7, 9, 9])
    shared = contrastive_loss(video, text, scale, groups)
    swapped = contrastive_loss(video[[1, 0, 3, 2]], text, scale, groups)
    torch.testing.assert_close(shared, swapped, rtol=1e-12, atol=0)
    assert shared < contrastive_loss(video, text, scale, torch.arange(4)) + math.log(2)


def test_sigmoid_loss_by_hand() -> None:
    video, text, scale = unit(3, 3), unit(3, 4), torch.tensor([1.0], dtype=torch.float64)
    loss = sigmoid_contrastive_loss(video, text, scale, torch.arange(3))
    bias = math.log(6) - math.log(3)
    total = 0.0
    for row in range(3):
        for column in range(3):
            score = math.e * float(video[row] @ text[column]) - bias
            total += math.log1p(math.exp(-score if row == column else score))
    assert math.isclose(float(loss), total / 3, rel_tol=1e-12)
