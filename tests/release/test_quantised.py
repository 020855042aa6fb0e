"""A release in 8 and 4 bits on a CPU, by transformers and optimum-quanto in an environment of their own.

XGENVIDEO_QUANTO_PYTHON names its interpreter; docs/release.md says how to make it.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from xgenvideo.data.generate import encode_video, make_twins, render

PYTHON = os.environ.get("XGENVIDEO_QUANTO_PYTHON", "")


@pytest.mark.slow
@pytest.mark.skipif(not Path(PYTHON).is_file(), reason="XGENVIDEO_QUANTO_PYTHON names no interpreter with quanto")
def test_eight_and_four_bits_load_and_write(release: Path, tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    encode_video(video, render(make_twins(5, 0)[0], 64), 8)
    own = {"HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    script = Path(__file__).parent / "quantised.py"
    done = subprocess.run(
        [PYTHON, "-P", str(script), str(release), str(video), "Which appears first?"],
        capture_output=True, text=True, check=False, timeout=250, env=os.environ | own,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["int4"]["bytes"] < found["int8"]["bytes"] < 0.6 * found["float32"]["bytes"]
    assert 0 < found["int8"]["error"] < 0.03
    assert found["int8"]["error"] < found["int4"]["error"] < 0.4
    assert all(isinstance(found[kind]["written"], str | list) and found[kind]["written"] for kind in ("int8", "int4"))
