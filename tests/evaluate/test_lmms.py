"""A real lmms-eval, in an environment of its own, finds the plug-in and runs a task on a local dataset with it.

The environment is made as docs/evaluation.md says; XGENVIDEO_LMMS_PYTHON names its interpreter.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.generate import encode_video, make_twins, render
from xgenvideo.data.text import question_prompt
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.infer.release import load_release
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.release.export import write_release
from xgenvideo.release.figures import run_figures

PYTHON = os.environ.get("XGENVIDEO_LMMS_PYTHON", "")
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {output}
doc_to_visual: !function video.visual
doc_to_text: question
doc_to_target: {target}
{more}
metadata: [{{version: 0.0}}]
"""
CHOICE = "doc_to_choice: options\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]"
WRITTEN = (
    "generation_kwargs: {max_new_tokens: 8, do_sample: false}\n"
    "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]"
)


@pytest.mark.slow
@pytest.mark.skipif(not Path(PYTHON).is_file(), reason="XGENVIDEO_LMMS_PYTHON names no interpreter with lmms-eval")
def test_a_real_lmms_eval_scores_as_this_program_does(
    tmp_path: Path, small_model: VideoLM, twins_tokenizer: Tokenizer, small_config: RunConfig, twins_dataset: Dataset
) -> None:
    figures = run_figures(tmp_path, 0, small_config, small_model, twins_dataset, None)
    out = write_release(small_model, twins_tokenizer, small_config, figures, tmp_path / "release")
    rows = local_rows(tmp_path)
    scored = lmms_eval(tmp_path, out)
    release = load_release(out)
    right = 0
    for row in rows:
        latents = release.latents(Path(row["video"]))
        scores = release.score_options(latents, row["question"], row["options"])
        right += int(torch.tensor(scores).argmax()) == row["answer"]
    assert scored["tiny_choice"]["acc,none"] == pytest.approx(right / len(rows))
    logged = next(tmp_path.glob("out/**/*samples_tiny_written*")).read_text(encoding="utf-8")
    samples = [json.loads(line) for line in logged.strip().split("\n")]
    for sample in samples:
        row = rows[sample["doc_id"]]
        wanted = release.generate(Path(row["video"]), row["question"], 8)
        assert sample["filtered_resps"] in (wanted, [wanted])
    assert len(samples) == len(rows)


def local_rows(folder: Path) -> list[dict[str, Any]]:
    """Two clips with their questions, as a task's folder; one task asks by likelihood, one by writing."""
    rows: list[dict[str, Any]] = []
    for number in range(2):
        scene = make_twins(5, number)[0]
        encode_video(folder / f"clip{number}.mp4", render(scene, 64))
        for asked in scene.questions[:2]:
            row = {"video": str(folder / f"clip{number}.mp4"), "question": question_prompt(asked.text)}
            rows.append(row | {"options": list(asked.options), "answer": asked.answer, "bare": asked.text})
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tasks / "video.py").write_text("def visual(row):\n    return [row['video']]\n", encoding="utf-8")
    for name, output, target, more in (
        ("tiny_choice", "multiple_choice", "answer", CHOICE),
        ("tiny_written", "generate_until", "bare", WRITTEN),
    ):
        text = TASK.format(name=name, rows=tasks / "rows.jsonl", output=output, target=target, more=more)
        (tasks / f"{name}.yaml").write_text(text, encoding="utf-8")
    return [row | {"question": row["bare"]} for row in rows]


def lmms_eval(folder: Path, release: Path) -> dict[str, Any]:
    """Results by task, of the program as its users start it."""
    command = [PYTHON, "-m", "lmms_eval", "--model", "xgenvideo", "--model_args", f"release={release}"]
    command += ["--tasks", "tiny_choice,tiny_written", "--include_path", str(folder / "tasks"), "--batch_size", "1"]
    command += ["--log_samples", "--output_path", str(folder / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, timeout=280, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    found = sorted(folder.glob("out/**/*results.json"))
    assert found, done.stdout[-2000:]
    results: dict[str, Any] = json.loads(found[-1].read_text(encoding="utf-8"))["results"]
    return results
