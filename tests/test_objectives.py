"""The losses against plain arithmetic."""

import math

import pytest
import torch
from torch.nn import functional

from xgenvideo import objectives
from xgenvideo.objectives import (
    IGNORED,
    VocabularyPart,
    contrastive_loss,
    next_token_loss,
    sigmoid_contrastive_loss,
)
from xgenvideo.plan.memory import LOGIT_PIECES


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_loss_in_pieces_is_the_cross_entropy_and_so_is_its_gradient(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "PIECE_NUMBERS", 1)
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(3, 7, 50, dtype=torch.float64, generator=generator)).to(dtype)
    targets = torch.randint(50, (3, 7), generator=generator)
    targets[1, 2:5] = IGNORED
    exact = logits.double().clone().requires_grad_()
    expected = functional.cross_entropy(exact.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    expected.backward(torch.tensor(0.3, dtype=torch.float64))
    leaf = logits.clone().requires_grad_()
    total, _ = next_token_loss(leaf, targets)
    assert total.dtype == torch.promote_types(dtype, torch.float32)
    total.backward(torch.tensor(0.3, dtype=total.dtype))
    assert exact.grad is not None
    assert leaf.grad is not None
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 1e-6}[dtype]
    torch.testing.assert_close(total.double(), expected.detach(), rtol=tolerance, atol=0)
    torch.testing.assert_close(leaf.grad, exact.grad.to(dtype), rtol=max(tolerance, torch.finfo(dtype).eps), atol=1e-7)
    assert leaf.grad.data_ptr() == leaf.data_ptr()


def test_ranks_with_parts_of_the_vocabulary_have_the_loss_of_the_whole() -> None:
    logits = torch.randn(1, 4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 5, 9, IGNORED]])
    whole = logits.clone().requires_grad_()
    expected, _ = next_token_loss(whole, targets)
    parts = logits.split(5, dim=-1)
    own = torch.stack([part[0].logsumexp(-1) for part in parts])
    most, terms = own.amax(0), torch.zeros(2, 4, dtype=torch.float64)

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        return terms.add_(tensor)

    # The two ranks one after the other: first what each gives to the sum, then what both get of it.
    for number, part in enumerate(parts):
        next_token_loss(part, targets, VocabularyPart(5 * number, lambda _: most, remember))
    gradients = []
    for number, part in enumerate(parts):
        leaf = part.clone().requires_grad_()
        total, count = next_token_loss(leaf, targets, VocabularyPart(5 * number, lambda _: most, lambda _: terms))
        torch.testing.assert_close(total, expected.detach(), rtol=1e-13, atol=0)
        assert count == 3
        total.backward()
        gradients.append(leaf.grad)
    expected.backward()
    torch.testing.assert_close(torch.cat(gradients, dim=-1), whole.grad, rtol=1e-12, atol=1e-15)


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


def test_the_planner_counts_as_many_pieces_of_the_logits() -> None:
    assert LOGIT_PIECES == objectives.PIECES
