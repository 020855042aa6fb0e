"""Published runs: read, predicted, how far off; what a row lacks is said."""

import csv
import json
import math
from pathlib import Path

import pytest

from xgenvideo import cli
from xgenvideo.errors import ConfigError, DataError
from xgenvideo.plan.fit import fit, leave_one_out, log_errors, usable
from xgenvideo.plan.published import published_runs, read_rows
from xgenvideo.plan.rates import Rates, load_rates, read_rates, spread
from xgenvideo.plan.rows import predict, predict_file
from xgenvideo.plan.textmemory import GIBIBYTE, text_memory
from xgenvideo.plan.textrun import stage_layers, text_step

LLAMA = {
    "run_id": "own_1",
    "framework": "NeMo/Megatron-Core",
    "gpu": "H100-SXM-80GB",
    "layers": "32",
    "hidden": "4096",
    "heads": "32",
    "kv_heads": "8",
    "ffn": "14336",
    "gated_mlp": "1",
    "vocab": "128256",
    "seq": "8192",
    "gbs": "128",
    "mbs": "1",
    "tp": "1",
    "pp": "1",
    "vpp": "1",
    "cp": "2",
    "dp": "4",
    "gpus": "8",
    "precision": "bf16",
    "attention": "TE",
    "inter_net": "8x400Gb/s IB/node",
}


def read(**changes: str) -> dict[str, object]:
    """One row predicted."""
    row = {**LLAMA, **changes}
    return predict(list(read_rows([row])), load_rates())[0]


def test_every_published_row_can_be_predicted_and_has_a_source() -> None:
    rows = published_runs()
    assert len(rows) == 253
    assert all(row.run is not None for row in rows)
    folder = Path(__file__).parents[2] / "src/xgenvideo/plan/facts"
    with (folder / "published_runs.csv").open(encoding="utf-8") as file:
        assert all(row["source"] for row in csv.DictReader(file))


def test_families_are_within_their_bounds_with_all_rows() -> None:
    rows, rates = usable(published_runs()), load_rates()
    errors = {row.name: abs(math.expm1(error)) for row, error in zip(rows, log_errors(rows, rates), strict=True)}
    for family, bound in (("vtrain", 0.07), ("sc21", 0.03), ("korth", 0.04), ("bloom", 0.06), ("dgxc", 0.05)):
        own = [errors[row.name] for row in rows if row.family == family]
        assert sum(own) / len(own) < bound, family


def test_a_family_that_was_left_out_is_predicted() -> None:
    """The smallest family, by rates that have not seen it; fewer rows of the others, to be quick."""
    rows = [row for row in published_runs() if row.family in ("sc21", "korth", "vtrain")]
    rates = fit(rows)
    errors = leave_one_out(rows, rates, {"sc21": "sc21", "korth": "korth", "vtrain": "vtrain"})
    assert set(errors) == {row.name for row in usable(rows)}
    own = [abs(math.expm1(errors[row.name])) for row in rows if row.family == "sc21"]
    assert sum(own) / len(own) < 0.06


def test_memory_of_published_runs() -> None:
    rows = [row for row in published_runs() if row.measured_gigabytes and row.run]
    planned = {row.name: text_memory(row.run).total / GIBIBYTE for row in rows if row.run}
    errors = {row.name: planned[row.name] / (row.measured_gigabytes or 1) - 1 for row in rows}
    assert sum(map(abs, errors.values())) / len(errors) < 0.12
    # One row holds 21 GB more than its sibling of the same layout; every other is covered.
    assert [name for name, error in errors.items() if error < -0.05] == ["bloom_10"]


def test_fields_of_a_predicted_row() -> None:
    found = read()
    assert found["run_id"] == "own_1"
    seconds, low, high = (float(str(found[name])) for name in ("iter_s", "low", "high"))
    assert low < seconds < high
    assert seconds == pytest.approx(12.3, rel=0.1)  # NVIDIA's own figure for this run
    tokens = 128 * 8192
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096
    flops = 6 * tokens * (weights + 2 * 32 * 8192 * 4096)
    assert found["mfu_pct"] == pytest.approx(100 * flops / (seconds * 8 * 989.4e12))


def test_what_is_missing_is_assumed_and_said() -> None:
    found = read(mbs="?", inter_net="", extra="x")
    assert found["defaults"] == ["inter_net: 3200 Gb/s a node", "mbs: 1", "recompute: none"]
    found = read(dp="5")
    assert found["iter_s"] == read()["iter_s"]
    assert "the row has 5" in str(found["defaults"])
    bare = {name: LLAMA[name] for name in ("run_id", "layers", "hidden", "heads", "seq", "gbs", "gpus")}
    found = predict(list(read_rows([bare])), load_rates())[0]
    assert float(str(found["iter_s"])) > 0
    assert any(str(text).startswith("gpu: H100") for text in found["defaults"])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": ""}, "no number in layers"),
        ({"gpu": "TPU v4"}, "no data of the GPU TPU V4"),
        ({"gpus": "9"}, "does not divide gpus 9"),
        ({"heads": "33"}, "no multiple of heads"),
        ({"tp": "0.5"}, "tp is 0.5"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why(changes: dict[str, str], reason: str) -> None:
    found = read(**changes)
    assert found["iter_s"] is None
    assert reason in str(found["reason"])


def test_step_time_moves_as_physics_says() -> None:
    rates = load_rates()

    def seconds(**changes: str) -> float:
        run = next(iter(read_rows([{**LLAMA, **changes}]))).run
        assert run is not None
        return text_step(run, rates).total

    assert seconds(precision="fp8") < seconds() < seconds(recompute="full")
    assert seconds(gbs="256") > 1.9 * seconds()
    assert seconds(gpu="A100-SXM-80GB") > 2 * seconds()
    piped = {"pp": "4", "cp": "1", "dp": "2"}
    assert seconds(**piped, gbs="16") / 16 > seconds(**piped) / 128  # the bubble weighs more in few microbatches
    assert seconds(heads="64", kv_heads="64") < seconds(heads="128", kv_heads="128", attention="softmax")


def test_layers_that_do_not_divide_count_the_ends() -> None:
    run = next(row.run for row in published_runs() if row.name.startswith("dgxc_llama3.1-405b"))
    assert run is not None
    held = stage_layers(run)
    assert (sum(held), held[0], held[1], held[-1]) == (126, 15, 16, 15)


def test_rows_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, out = tmp_path / "rows.csv", tmp_path / "out.json"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(LLAMA))
        writer.writeheader()
        writer.writerows([LLAMA, {**LLAMA, "run_id": "own_2", "gbs": ""}])
    assert cli.main(["plan", "--rows", str(table), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "1 of 2 rows predicted" in text
    assert "own_2: cannot be predicted: no number in gbs" in text
    assert [row["run_id"] for row in json.loads(out.read_text())] == ["own_1", "own_2"]


def test_files_that_are_no_rows_or_rates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        predict_file(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("run_id,layers\n")
    with pytest.raises(DataError, match="holds no row"):
        predict_file(tmp_path / "empty.csv")
    with pytest.raises(ConfigError, match="no file of rates"):
        read_rates('{"rates": {}}', "x.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_rates(tmp_path / "none.json")


def test_shipped_rates_are_physical() -> None:
    rates = load_rates()
    shares = (
        "matmul_ampere",
        "matmul_hopper",
        "memory",
        "nvlink",
        "network",
        "omni_path",
        "flash_ampere",
        "hidden_tensor",
    )
    assert all(0 < getattr(rates, name) < 1 for name in shares)
    assert rates != Rates()
    for generation in ("ampere", "hopper"):
        low, high = spread(generation)
        assert 0.5 < low < 1 < high < 2
