"""Trained by ranks of tensor and pipeline, exported tensor by tensor, loaded by a stranger: the same bits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from xgenvideo import recipes
from xgenvideo.checkpoint import load_run
from xgenvideo.config import RunConfig, override
from xgenvideo.infer.probe import logits_digest
from xgenvideo.infer.release import INDEX, load_release
from xgenvideo.release.export import export
from xgenvideo.train.resume import differences


def train_ranks(config: RunConfig, out: Path) -> None:
    """Train on as many ranks of this machine as the layout has, over gloo."""
    changed = differences(recipes.find("tiny"), config)
    values = {name: str(value).lower() if isinstance(value, bool) else value for name, (_, value) in changed.items()}
    overrides = [f"{name}={value}" for name, value in values.items()]
    ranks = str(config.layout.world)
    command = [sys.executable, "-m", "xgenvideo", "train", "tiny", *overrides, "--out", str(out), "--processes", ranks]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_tensor_and_pipeline_ranks_saved_is_exported_tensor_by_tensor(
    run_config: RunConfig, tmp_path: Path
) -> None:
    layout = ["layout.tensor=2", "layout.pipeline=2", "layout.microbatch_pairs=2", "train.steps=2"]
    run, out = tmp_path / "run", tmp_path / "release"
    train_ranks(override(run_config, layout), run)
    trained = load_run(run)
    index = json.loads((trained.checkpoint / "index.json").read_text())["tensors"]
    pieces = {name: about["pieces"] for name, about in index.items() if name.startswith("model/")}
    assert any(len(parts) == 2 for parts in pieces.values())
    assert len({piece["file"] for parts in pieces.values() for piece in parts}) == 4
    # The exporter loads what it wrote in two fresh processes and compares logits bit for bit.
    export(run, out, max_shard_bytes=100_000)
    weight_map = json.loads((out / INDEX).read_text())["weight_map"]
    released = {name: load_file(out / shard)[name] for name, shard in weight_map.items()}
    whole = trained.model.state_dict()
    assert released.keys() == whole.keys()
    assert all(torch.equal(released[name], tensor) for name, tensor in whole.items())
    assert logits_digest(load_release(out).model) == logits_digest(trained.model)
