"""Layout arithmetic: ranks and places, and which settings fit together."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xgenvideo import recipes
from xgenvideo.config import override
from xgenvideo.errors import ConfigError
from xgenvideo.parallel.layout import Layout, Place, check_layout, divisors_near
from xgenvideo.parallel.world import single_process

SIZES = st.integers(1, 8)


@given(SIZES, SIZES, SIZES)
def test_every_rank_has_one_place(pipeline: int, data: int, tensor: int) -> None:
    layout = Layout(pipeline, data, tensor)
    places = [layout.place(rank) for rank in range(layout.ranks)]
    expected = [Place(*at) for at in itertools.product(range(pipeline), range(data), range(tensor))]
    assert places == expected
    assert [layout.rank(place) for place in places] == list(range(layout.ranks))


def test_the_large_recipe_fits_its_512_ranks() -> None:
    layout = check_layout(recipes.find("video_30b"), 512)
    assert (layout.ranks, layout.ranks_per_replica) == (512, 32)
    # The tensor ranks of one stage are neighbours: eight ranks a host hold two whole tensor groups.
    assert [layout.place(rank).tensor for rank in range(8)] == [0, 1, 2, 3] * 2


@pytest.mark.parametrize(
    ("changes", "world", "told"),
    [
        (["layout.tensor=3"], 384, r"layout\.tensor = 3: must divide model\.decoder\.heads|kv_heads"),
        (
            ["layout.tensor=16"],
            2048,
            r"layout\.tensor = 16: must divide model\.decoder\.kv_heads = 8.*Valid: 1, 2, 4, 8",
        ),
        (["layout.virtual_stages=4"], 512, r"layout\.virtual_stages = 4: must be at most 3.*Valid: 1, 2, 3"),
        (["layout.pipeline=32", "layout.data=2", "layout.virtual_stages=2"], 256, r"at most the 56 .*Valid: 28"),
        (["layout.microbatch_pairs=64"], 512, r"layout\.microbatch_pairs = 64: gives 2 microbatches.*Valid: 16"),
        ([], 256, r"layout\.data = 16: .*4 x 8 x 16 = 512 ranks, 256 are there\. Valid: 8"),
        ([], 16, r"layout\.data = 16: .*512 ranks, 16 are there\.$"),
        (["train.global_batch_pairs=256"], 512, r"global_batch_pairs = 256: must be at least the 512 ranks"),
        (["data.text_tokens=510"], 512, r"layout\.tensor = 4: must divide data\.text_tokens = 510"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(changes: list[str], world: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_layout(override(recipes.find("video_30b"), changes), world)


@given(SIZES, SIZES, SIZES, st.integers(1, 600))
def test_shares_cover_the_batch_and_differ_by_one_pair_at_most(p: int, d: int, t: int, pairs: int) -> None:
    layout = Layout(p, d, t)
    shares = [layout.share(number, pairs) for number in range(layout.ranks)]
    assert [place for share in shares for place in share] == list(range(pairs))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sorted(layout.pair_rank(rank) for rank in range(layout.ranks)) == list(range(layout.ranks))
    # The shares of one replica lie next to each other.
    for rank in range(layout.ranks):
        assert layout.pair_rank(rank) // layout.ranks_per_replica == layout.place(rank).data


def test_divisors_near() -> None:
    assert divisors_near(48, 5) == [2, 3, 4, 6]
    assert divisors_near(7, 3) == [1, 7]


def test_one_process_is_its_own_world() -> None:
    world = single_process()
    rows = torch.ones(3, 2)
    assert (world.rank, world.size) == (0, 1)
    assert world.gather_shares(rows, 3) is rows
    assert world.to_first_stage(rows, 3) is rows
    assert world.sum(rows) is rows
