"""W&B: asked for and installed it logs the run, offline too; not asked for it is not imported."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xgenvideo.errors import MissingExtra
from xgenvideo.train.log import Log

INSTALLED = importlib.util.find_spec("wandb") is not None
# A process of its own: W&B starts a service beside it and changes the process's signals and hooks.
SCRIPT = """
import sys
from pathlib import Path
from xgenvideo.train.log import Log
for start in (0, 2):
    with Log(Path(sys.argv[1]), start, 4, True, "a-project") as log:
        for step in (start + 1, start + 2):
            log.write({"step": step, "loss": 2.5 - step, "mfu": None, "gates": {"3.mlp_gate": 0.5}})
"""


@pytest.mark.skipif(not INSTALLED, reason="the extra xgenvideo[wandb] is not installed")
def test_offline_runs_are_kept_beside_the_run_and_a_resume_goes_on_in_the_same(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": 4}}))
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    name = (tmp_path / "wandb_run.txt").read_text()
    kept = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(kept) == 2
    written = [file for folder in kept for file in folder.glob(f"run-{name}.wandb")]
    assert len(written) == 2
    assert all(b"gates/3.mlp_gate" in file.read_bytes() for file in written)


@pytest.mark.skipif(INSTALLED, reason="the extra xgenvideo[wandb] is installed")
def test_without_the_package_the_pip_line_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"pip install .*xgenvideo\[wandb\]"):
        Log(tmp_path, 0, 4, True, "a-project")


def test_who_does_not_ask_does_not_import_it(tmp_path: Path) -> None:
    told = "import sys; from xgenvideo.train import log; from pathlib import Path\n"
    told += "with log.Log(Path(sys.argv[1]), 0, 1, True) as it: it.write({'step': 1, 'loss': 1.0})\n"
    told += "assert 'wandb' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", told, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
