"""A release in transformers' hands: without this program, with it imported, and when something was dropped."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import einops
import pytest
import torch

from xgenvideo.data.generate import encode_video, make_twins, render
from xgenvideo.errors import ReleaseError
from xgenvideo.infer.generate import generate, question_ids
from xgenvideo.infer.release import load_release
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.release.assemble import hub_code
from xgenvideo.release.check import check_stranger, probe_tensors
from xgenvideo.release.hub import axes

QUESTIONS = ("Which appears first?", "Which way does it move, and how often?")
STRANGER = Path(__file__).parent / "stranger.py"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    encode_video(path, render(make_twins(5, 0)[0], 64), 8)
    return path


def python(scratch: Path, *command: str) -> Any:
    """What Python prints as JSON, its copies of released code in `scratch`."""
    own = {"HF_HOME": str(scratch), "HF_MODULES_CACHE": str(scratch / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=300, env=os.environ | own
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def written(release: Path, video: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    scratch = tmp_path_factory.mktemp("home")
    found: dict[str, Any] = python(scratch, "-P", str(STRANGER), str(release), str(video), *QUESTIONS)
    return found


def ended(ids: list[int]) -> list[int]:
    """The ids before the first special token."""
    return ids[: next((i for i, one in enumerate(ids) if one < 4), len(ids))]


def test_transformers_writes_our_greedy_tokens_with_and_without_its_cache(
    release: Path, video: Path, written: dict[str, Any]
) -> None:
    ours = load_release(release)
    latents = ours.latents(video)
    prompts = [question_ids(question, ours.tokenizer) for question in QUESTIONS]
    expected = generate(ours.model, ours.tokenizer, latents.expand(2, -1, -1), prompts, 64)
    assert [ended(ids) for ids in written["cached"]] == expected
    assert written["uncached"] == written["cached"]
    assert [ended(written["caption"][0])] == generate(ours.model, ours.tokenizer, latents, [[1]], 64)
    assert [ended(written["blind"][0])] == generate(ours.model, ours.tokenizer, None, prompts[:1], 64)
    assert [ended(written["chat"][0])] == expected[:1]
    assert len(written["beams"]) == 2


def test_the_classes_are_what_the_config_names(written: dict[str, Any]) -> None:
    assert written["model_type"] == "xgenvideo"
    assert written["base"] == "XGenVideoForConditionalGeneration"
    assert not written["torchvision"]


def test_a_text_that_spells_a_special_token_stays_a_text(release: Path, written: dict[str, Any]) -> None:
    assert written["special"] == [1, *load_release(release).tokenizer.encode("<|eos|>")]


def copied(release: Path, folder: Path, changes: dict[str, str]) -> Path:
    """A copy whose model code has each key replaced by its value."""
    folder.mkdir()
    for path in release.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    code = (folder / "modeling_xgenvideo.py").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    (folder / "modeling_xgenvideo.py").write_text(code, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.add_module(name, part)", 'self.add_module(name.replace("text_norm", "norm_of_text"), part)'),
        ("TIME_SCALE = 2.0", "TIME_SCALE = 2.0001"),
    ],
    ids=["name", "arithmetic"],
)
def test_an_export_that_drops_or_changes_anything_is_refused(
    release: Path, small_model: VideoLM, tmp_path: Path, old: str, new: str
) -> None:
    with pytest.raises(ReleaseError, match=r"missing_keys|differing|cannot load"):
        check_stranger(copied(release, tmp_path / "copy", {old: new}), probe_tensors(small_model))


def test_a_prefix_that_names_a_part_drops_no_weight(release: Path, small_model: VideoLM, tmp_path: Path) -> None:
    changes = {'base_model_prefix = "xgenvideo"': 'base_model_prefix = "decoder"'}
    check_stranger(copied(release, tmp_path / "copy", changes), probe_tensors(small_model))


def test_released_code_names_no_package_but_its_own_few() -> None:
    for name, code in hub_code().items():
        compile(code, name, "exec")
        packages = {line.split()[1].split(".")[0] for line in re.findall(r"^(?:import|from) [^.\n]+.*$", code, re.M)}
        strange = packages - set(sys.stdlib_module_names) - {"torch", "transformers"}
        assert strange == ({"av", "cv2", "numpy"} if name.startswith("processing") else set())


def test_importing_this_program_registers_the_classes(release: Path, tmp_path: Path) -> None:
    code = (
        "import json, sys, xgenvideo; early = 'transformers' in sys.modules\n"
        "from transformers import AutoModelForCausalLM, AutoProcessor\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1])\n"
        "print(json.dumps([early, type(model).__module__, type(processor).__module__]))"
    )
    hub = "xgenvideo.release.hub."
    expected = [False, f"{hub}modeling_xgenvideo", f"{hub}processing_xgenvideo"]
    assert python(tmp_path, "-c", code, str(release)) == expected
    late = code.replace("import json, sys, xgenvideo; early", "import json, sys, transformers, xgenvideo; early")
    assert python(tmp_path, "-c", late, str(release)) == [True, *expected[1:]]


@pytest.mark.parametrize(
    ("pattern", "shape", "sizes"),
    [
        ("b t (h e) -> b h t e", (2, 3, 8), {"e": 4}),
        ("b f p d -> b (f p) d", (2, 3, 4, 5), {}),
        ("b h 1 e -> b (h e)", (2, 3, 1, 5), {}),
        ("(b f) p w -> b f p w", (6, 2, 3), {"b": 2}),
        ("n w y x -> n (y x) w", (2, 3, 4, 5), {}),
    ],
)
def test_our_rearrange_is_einops(pattern: str, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    x = torch.rand(shape)
    assert torch.equal(axes.rearrange(x, pattern, **sizes), einops.rearrange(x, pattern, **sizes))
    flat = torch.rand(2, 3)
    assert torch.equal(axes.repeat(flat, "b f -> b (f p)", p=4), einops.repeat(flat, "b f -> b (f p)", p=4))
