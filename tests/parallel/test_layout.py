"""Layout arithmetic: ranks and places, and which settings fit together."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xgenvideo import recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.errors import ConfigError, NotReady
from xgenvideo.parallel.layout import Layout, Place, check_layout, divisors_near, refuse_unready
from xgenvideo.parallel.world import World, single_process

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
        (["train.global_batch_pairs=2064"], 512, r"multiple of the 512 ranks.*Valid: 2048, 2560"),
    ],
)
def test_what_does_not_fit_is_named_with_what_would(changes: list[str], world: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_layout(override(recipes.find("video_30b"), changes), world)


def test_only_one_process_trains_for_now(small_config: RunConfig) -> None:
    refuse_unready(small_config)
    with pytest.raises(NotReady, match=r"layout\.tensor = 4, .*Set layout\.tensor=1 layout\.pipeline=1 layout\.data=1"):
        refuse_unready(recipes.find("video_30b"))


def test_divisors_near() -> None:
    assert divisors_near(48, 5) == [2, 3, 4, 6]
    assert divisors_near(7, 3) == [1, 7]


def test_one_process_is_its_own_world() -> None:
    world = single_process()
    rows = torch.ones(3, 2)
    assert (world.rank, world.size) == (0, 1)
    assert world.gather(rows) is rows
    with pytest.raises(AssertionError, match="needs a process group"):
        World(0, 2, torch.device("cpu")).gather(rows)
