"""Every layout starts from a checkpoint as one process does: biases and norms of heads are cut with their matrices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

SCRIPT = Path(__file__).parent / "warm_layouts.py"
SETTINGS = "model.decoder.rope_theta=10000.0 model.decoder.norm_eps=1e-6"


def written(family: str, folder: Path) -> Path:
    """A checkpoint of the sizes of the parity bench's model, in shards."""
    torch.manual_seed(3)
    config = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}[family](
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        eos_token_id=2,
    )
    model: PreTrainedModel = {"qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}[family](config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.mark.parametrize(
    ("family", "setting", "layouts"),
    [
        # With the words of the checkpoint, whose ids are four more: rows are shifted, then cut.
        ("qwen2", "model.decoder.attention_biases=true data.tokenizer=words model.decoder.vocab=72", ["TP2"]),
        ("qwen3", "model.decoder.query_key_norm=true", ["TP2xPP2", "DP2"]),
    ],
)
def test_layouts_start_from_a_checkpoint_as_one_process_does(
    family: str, setting: str, layouts: list[str], tmp_path: Path
) -> None:
    folder = written(family, tmp_path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), f"{SETTINGS} {setting}", *layouts],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("")[0] > 0.1, "the checkpoint changes the losses"
    assert list(found) == layouts
    assert all(loss <= 1e-12 and weight <= 1e-11 for loss, weight in found.values()), found


def test_a_checkpoint_of_other_sizes_is_one_sentence_before_ranks_start(tmp_path: Path) -> None:
    folder = written("qwen3", tmp_path / "checkpoint")
    command = [sys.executable, "-m", "xgenvideo", "train", "tiny", f"model.decoder_from={folder}"]
    two = ["layout.data=2", "layout.microbatch_pairs=16", "--processes", "2", "--out", str(tmp_path / "run")]
    for more in (two, ["--dry-run", "--world", "1"]):
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert "model.decoder.width = 128: is 32 in" in line
        assert not (tmp_path / "run").exists()
