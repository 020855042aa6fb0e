"""The large run laid out rank by rank, without memory."""

import json
from pathlib import Path

import pytest

from xgenvideo import cli, recipes
from xgenvideo.config import RunConfig, override
from xgenvideo.errors import ConfigError
from xgenvideo.parallel.dry_run import dry_run


def test_the_large_recipe_on_its_512_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dry.json"
    assert cli.main(["train", "video_30b", "--dry-run", "--world", "512", "--json", str(out)]) == 0
    assert "total parameters: 30,202,772,625" in capsys.readouterr().out
    told = json.loads(out.read_text())
    assert (told["parameters_total"], told["parameters_trained"]) == (30_202_772_625, 28_359_995_281)
    assert [row["pipeline"] for row in told["ranks"]] == list(range(8))
    # What the tensor axis does not cut (norms, gates, the text projection, the temperature) is held more than once.
    assert 1 < told["elements_on_all_ranks"] / told["parameters_trained"] < 1.001


def test_the_optimizer_shards_of_all_ranks_make_up_the_model(small_config: RunConfig) -> None:
    config = override(small_config, ["layout.data=4", "layout.microbatch_pairs=1"])
    found = dry_run(config, 4)
    scale_copies = 3
    assert found.elements_on_all_ranks == found.parameters_trained + scale_copies
    whole = override(config, ["layout.data_parallel=replicate"])
    decoder = sum(row.parameters for row in found.ranks)
    assert dry_run(whole, 4).elements_on_all_ranks > 2 * decoder


def test_a_world_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layout\.data = 16: .* 510 are there"):
        dry_run(recipes.find("video_30b"), 510)
