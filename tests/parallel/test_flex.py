"""FlexAttention over packed texts sees what the dense mask lets be seen: forward, as a CPU has no backward of it."""

import dataclasses
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from xgenvideo import recipes
from xgenvideo.config import override
from xgenvideo.errors import ConfigError
from xgenvideo.models.layers import attend, block_mask, text_mask
from xgenvideo.parallel.engine import build_engine
from xgenvideo.parallel.stage import Feed, Texts
from xgenvideo.parallel.world import World


@pytest.fixture(autouse=True)
def unfused() -> Iterator[None]:
    """On a CPU it is not compiled here, and says so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        yield


def packed(rows: int, tokens: int) -> Tensor:
    """Documents [rows tokens] of random lengths, padding as one of its own at the end."""
    random = torch.Generator().manual_seed(tokens)
    ends = torch.rand(rows, tokens, generator=random) < 4 / tokens
    return ends.long().cumsum(dim=1)


@pytest.mark.parametrize("tokens", [24, 130, 384])
def test_blocks_let_a_token_see_what_the_dense_mask_does(tokens: int) -> None:
    torch.manual_seed(1)
    q, k, v = torch.randn(2, 4, tokens, 16), torch.randn(2, 2, tokens, 16), torch.randn(2, 2, tokens, 16)
    documents = packed(2, tokens)
    assert documents.max() > 0
    dense = text_mask(documents, q.dtype)
    assert dense is not None
    found, expected = attend(q, k, v, block_mask(documents)), attend(q, k, v, dense)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    other = attend(q, k, v, block_mask(torch.zeros_like(documents)))
    assert (other - expected).abs().max() > 0.01


def test_a_stage_has_the_same_loss() -> None:
    torch.manual_seed(2)
    config = override(recipes.find("tiny"), ["train.precision=fp32"])
    (stage,) = build_engine(config, World(0, 1, torch.device("cpu"))).held
    tokens, documents = torch.randint(0, config.model.decoder.vocab, (2, 40)), packed(2, 40)
    sees, ends, positions = torch.zeros_like(tokens).bool(), torch.tensor([10, 20]), torch.arange(40).expand(2, 40)
    latents = torch.randn(2, config.model.resampler.queries, config.model.resampler.width)
    stage.feeds = [Feed(Texts(tokens, tokens, documents, positions, sees, ends, ends), latents)]
    losses = []
    for stage.flex in (False, True):
        with torch.no_grad():
            losses.append(stage(index=torch.tensor(0))[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    stage.feeds[0].texts = dataclasses.replace(stage.feeds[0].texts, documents=torch.zeros_like(documents))
    with torch.no_grad():
        assert not torch.isclose(stage(index=torch.tensor(0))[0], losses[0], rtol=1e-6, atol=0)


def test_most_blocks_of_packed_texts_are_passed_over() -> None:
    documents = torch.arange(2048).div(128, rounding_mode="floor")[None]
    assert block_mask(documents).sparsity() > 90  # 16 of 256 blocks are looked at


def test_a_machine_without_a_gpu_is_refused() -> None:
    config = override(recipes.find("tiny"), ["train.flex_attention=true"])
    with pytest.raises(ConfigError, match=r"train\.flex_attention.*on a GPU alone"):
        build_engine(config, World(0, 1, torch.device("cpu")))
