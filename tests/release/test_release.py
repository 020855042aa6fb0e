"""A release of a small model: bitwise round trip, tampering, card."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from xgenvideo import config as configs
from xgenvideo.checkpoint import Snapshot, load_run, save
from xgenvideo.config import RunConfig, override
from xgenvideo.data.dataset import Dataset, sha256_of
from xgenvideo.data.shards import write_dataset
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import CheckpointError, ConfigError, DataError, ReleaseError
from xgenvideo.infer.probe import logits_digest
from xgenvideo.infer.release import DESCRIPTION, INDEX, identity_of, load_release
from xgenvideo.models.video_lm import VideoLM, trainable_state
from xgenvideo.models.vision import encoder_hash
from xgenvideo.plan.parameters import parameters
from xgenvideo.release.card import model_card
from xgenvideo.release.check import check_fresh, check_stranger, probe_tensors
from xgenvideo.release.export import export, portable
from xgenvideo.release.figures import run_figures
from xgenvideo.release.weights import in_memory, split, write_weights


def copied(release: Path, folder: Path) -> Path:
    """A copy that a test may damage."""
    folder.mkdir()
    for path in release.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def rehash(folder: Path) -> None:
    """Make release.json fit the files again: an error, not an attack, is what loading must still find."""
    description = json.loads((folder / DESCRIPTION).read_text())
    for name, entry in description["files"].items():
        entry["sha256"] = sha256_of(folder / name)
    description["identity"] = identity_of(description["files"])
    (folder / DESCRIPTION).write_text(json.dumps(description))


def test_the_release_computes_what_the_run_does_bit_for_bit(release: Path, run: Path, small_model: VideoLM) -> None:
    loaded = load_release(release)
    assert logits_digest(loaded.model) == logits_digest(small_model) == logits_digest(load_run(run).model)
    for name, tensor in small_model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert not any(parameter.requires_grad for parameter in loaded.model.vision.parameters())
    assert len(list(release.glob("model-*-of-*.safetensors"))) > 2
    assert all(path.stat().st_size < 220_000 for path in release.glob("*.safetensors"))
    assert not list(release.parent.glob("*.tmp-*"))


@pytest.mark.parametrize("spaces", [8, 24])
def test_where_a_file_holds_the_weights_does_not_change_a_bit(
    release: Path, small_model: VideoLM, tmp_path: Path, spaces: int
) -> None:
    folder = copied(release, tmp_path / "copy")
    for shard in folder.glob("*.safetensors"):
        content = shard.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = content[8 : 8 + length] + b" " * spaces
        shard.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    rehash(folder)
    expected = logits_digest(small_model)
    assert logits_digest(load_release(folder).model) == expected
    check_fresh(folder, expected)
    check_stranger(folder, probe_tensors(small_model))


def test_the_config_names_no_place_on_the_trainers_disk(release: Path, run: Path) -> None:
    text = (release / "run.json").read_text() + (release / "config.json").read_text()
    config = load_run(run).config
    assert config.data.shards
    assert configs.load(release / "run.json").data.shards == ""
    assert config.data.shards not in text
    evaluation = load_release(release).description["figures"]["evaluation"]
    assert set(evaluation["of"]) == {"weights_sha256", "data", "versions"}
    moved = override(config, ["model.vision.weights=/somewhere/encoder"])
    assert portable(moved).model.vision.weights == "encoder"


@pytest.mark.parametrize(
    "name", ["config.json", "run.json", "tokenizer.json", "README.md", "model-00001-of-*.safetensors", INDEX]
)
def test_one_changed_byte_is_refused(release: Path, tmp_path: Path, name: str) -> None:
    folder = copied(release, tmp_path / "copy")
    path = next(folder.glob(name))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ReleaseError, match=path.name):
        load_release(folder)


def test_missing_files_and_foreign_folders_are_refused(release: Path, tmp_path: Path) -> None:
    folder = copied(release, tmp_path / "copy")
    next(folder.glob("model-00002*")).unlink()
    with pytest.raises(ReleaseError, match="no such file"):
        load_release(folder)
    with pytest.raises(ReleaseError, match="xgv export"):
        load_release(tmp_path)


def test_paths_out_of_the_folder_are_refused(release: Path, tmp_path: Path) -> None:
    folder = copied(release, tmp_path / "copy")
    description = json.loads((folder / DESCRIPTION).read_text())
    description["files"]["../outside"] = {"sha256": "0"}
    (folder / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ReleaseError, match=r"\.\./outside"):
        load_release(folder)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["logit_scale"] = "../outside.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    (folder / DESCRIPTION).write_bytes((release / DESCRIPTION).read_bytes())
    rehash(folder)
    with pytest.raises(ReleaseError, match=r"outside\.safetensors"):
        load_release(folder)


def test_missing_unexpected_and_misshapen_tensors_are_refused(release: Path, tmp_path: Path) -> None:
    folder = copied(release, tmp_path / "copy")
    index = json.loads((folder / INDEX).read_text())
    shard = index["weight_map"].pop("logit_scale")
    tensors = load_file(folder / shard)
    scale = tensors.pop("logit_scale")
    for change, message in ((None, "missing"), (scale.expand(3).clone(), "another shape")):
        changed = tensors if change is None else tensors | {"logit_scale": change}
        index["weight_map"] |= {} if change is None else {"logit_scale": shard}
        save_file(changed, folder / shard)
        (folder / INDEX).write_text(json.dumps(index))
        rehash(folder)
        with pytest.raises(ReleaseError, match=f"{message}.*logit_scale"):
            load_release(folder)


def test_the_card_states_what_was_measured_and_nothing_else(
    release: Path, evaluation: dict[str, Any], small_config: RunConfig
) -> None:
    card = (release / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    metrics = {metric["type"]: metric["value"] for metric in front["model-index"][0]["results"][0]["metrics"]}
    assert front["license"] == "apache-2.0"
    assert metrics["temporal_qa"] == pytest.approx(evaluation["temporal_qa"], abs=1e-5)
    assert f"{parameters(small_config.model).total:,}" in card
    # The log goes to step 12, the checkpoint is of step 7; the loss of step 1 was not finite.
    assert "Next-token loss: 4.8000 at step 2, 4.3000 at step 7." in card
    assert "MFU, median over the log: 25.0 % of 0.15 TFLOP/s, measured: fp32 matrix product" in card
    assert "Sources, in clips: scene 32." in card
    # 32 clips in the dataset, and 3 that were dropped.
    assert "Curation kept 32 of 35 clips, 91.4%" in card
    assert "| still | 3 | 8.6% |" in card
    assert "CC0-1.0 32" in card
    assert "Steps: 7 of" in card
    results = ModelCard(card).data.eval_results
    assert results is not None
    assert {(one.metric_type, one.dataset_split) for one in results} >= {("temporal_qa", "heldout")}
    assert "Country: not recorded." in card
    assert "Energy and CO2: not measured" in card
    for target in ("44.5", "H100", "30.2", "30,202,772,625", "150 million"):
        assert target not in card


def test_energy_is_what_the_counters_add_up_to_and_the_place_is_what_was_said(
    run: Path, tmp_path: Path, small_config: RunConfig, small_model: VideoLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"step": step, "gpu_joules": 1.8e6, "cpu_joules": 0.9e6 if step > 2 else None} for step in range(1, 7)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    monkeypatch.setenv("XGENVIDEO_COUNTRY", "Finland")
    monkeypatch.setenv("XGENVIDEO_CO2_G_PER_KWH", "50")
    figures = run_figures(tmp_path, 4, small_config, small_model, None, None)
    card = model_card(figures, small_config, "apache-2.0")
    # Steps 1 to 4: four times half a kWh and two times a quarter.
    assert "Country: Finland." in card
    assert "Energy: 2.5 kWh measured: GPUs (NVML counters) 2 kWh over 4 of 4 log lines" in card
    assert "processor packages (RAPL counters) 0.5 kWh over 2 of 4 log lines" in card
    assert "CO2: 0.125 kg, that energy times 50 g a kWh" in card
    monkeypatch.delenv("XGENVIDEO_CO2_G_PER_KWH")
    figures = run_figures(tmp_path, 4, small_config, small_model, None, None)
    assert "CO2: not computed" in model_card(figures, small_config, "apache-2.0")
    monkeypatch.setenv("XGENVIDEO_CO2_G_PER_KWH", "little")
    with pytest.raises(ConfigError, match="grams of CO2"):
        run_figures(tmp_path, 4, small_config, small_model, None, None)


def test_an_export_without_evaluation_or_data_says_so(
    small_config: RunConfig, small_model: VideoLM, twins_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    state = {"encoder_hash": encoder_hash(small_model.vision)}
    save(folder / "checkpoints", Snapshot(1, small_config, {"model": trainable_state(small_model)}, state), keep=2)
    twins_tokenizer.save(folder / "tokenizer.json")
    card = (export(folder, tmp_path / "release") / "README.md").read_text(encoding="utf-8")
    assert "Not evaluated." in card
    assert "not known here" in card
    assert "MFU: not measured" in card
    assert "model-index" not in card


def test_nothing_is_overwritten_and_a_failed_export_leaves_nothing(
    release: Path, run: Path, tmp_path: Path, twins_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ReleaseError, match="never overwritten"):
        export(run, release)
    monkeypatch.setattr("xgenvideo.release.export.logits_digest", lambda model: "another")
    with pytest.raises(ReleaseError, match="fresh process computes other logits"):
        export(run, tmp_path / "release")
    assert list(tmp_path.iterdir()) == []


def test_figures_of_other_weights_are_refused(run: Path, tmp_path: Path, evaluation: dict[str, Any]) -> None:
    with pytest.raises(ReleaseError, match="xgv evaluate"):
        export(run, tmp_path / "release", evaluation=evaluation | {"weights": "0" * 64})


def test_another_dataset_than_the_runs_is_refused(run: Path, tmp_path: Path, twins_dataset: Dataset) -> None:
    other = write_dataset(tmp_path / "other", [twins_dataset.read("train0a")], {})
    with pytest.raises(DataError, match="fingerprint"):
        export(run, tmp_path / "release", dataset=other.folder)


def test_a_folder_that_is_no_run_cannot_be_released(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing was saved there"):
        export(tmp_path, tmp_path / "release")


def test_shards_hold_every_tensor_once(tmp_path: Path) -> None:
    state = {f"t{i}": torch.full((i + 1,), float(i)) for i in range(6)}
    sizes = {name: tensor.nbytes for name, tensor in state.items()}
    assert list(split(sizes, 12)) == [
        ["t0", "t1"],
        ["t2"],
        ["t3"],
        ["t4"],
        ["t5"],
    ]
    write_weights(in_memory(state), tmp_path, max_shard_bytes=40)
    index = json.loads((tmp_path / INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * 21
    read = {name: load_file(tmp_path / shard)[name] for name, shard in index["weight_map"].items()}
    assert all(torch.equal(read[name], state[name]) for name in state)
    with pytest.raises(ConfigError):
        write_weights(in_memory(state), tmp_path, max_shard_bytes=0)
