"""Long videos: read once, memory that grows by the latents alone, and answers that name the times they rest on."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from xgenvideo.config import RunConfig, override
from xgenvideo.data.generate import encode_video, make_twins, render
from xgenvideo.data.text import question_document
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.infer.cite import answer_with_times, cite
from xgenvideo.infer.likelihood import log_likelihoods
from xgenvideo.infer.release import Release
from xgenvideo.models.video_lm import VideoLM

GIGABYTE = 10**9


@pytest.fixture(scope="module")
def release(small_model: VideoLM, small_config: RunConfig, twins_tokenizer: Tokenizer) -> Release:
    config = override(small_config, ["data.frames=8"])
    return Release(Path("nowhere"), small_model, twins_tokenizer, config, {"short_side": 256}, {"identity": "f" * 64})


def test_cited_windows_are_those_that_make_the_answer_likelier(release: Release, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    encode_video(path, render(make_twins(5, 0)[0], 64), 8)
    watched, question, text = release.watch(path), "Which appears first?", "the red square"
    found = cite(release, watched.latents, watched.spans, question, text, most=len(watched.spans))
    document = question_document(question, text, release.tokenizer)
    blind = log_likelihoods(release.model, [document], None, [0])[0]
    for span, latents in zip(watched.spans, watched.latents, strict=True):
        gain = log_likelihoods(release.model, [document], latents[None], [0])[0] - blind
        named = [one.nats for one in found if (one.start, one.end) == span]
        assert named == ([pytest.approx(gain, abs=1e-4)] if gain > 0 else [])
    assert [one.nats for one in found] == sorted((one.nats for one in found), reverse=True)


def test_an_answer_is_the_one_without_times(release: Release, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    encode_video(path, render(make_twins(5, 0)[0], 64), 8)
    answer = answer_with_times(release, path, "Which appears first?")
    assert answer.text == release.answer(path, "Which appears first?")
    assert len(answer.times) <= 3
    assert answer_with_times(release, path).text == release.caption(path)
    assert torch.equal(release.watch(path).together, release.latents(path))


def write_long(path: Path, seconds: int) -> Path:
    """A dot that crosses a 96 x 64 picture, 2 frames a second."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=2, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for number in range(2 * seconds):
            picture = np.full((64, 96, 3), 60, np.uint8)
            picture[28:36, number % 88 : number % 88 + 8] = (200, 30, 30)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 2)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def watched_alone(path: Path) -> dict[str, float]:
    """What watch_hour.py prints of a video."""
    script = Path(__file__).parent / "watch_hour.py"
    done = subprocess.run(
        [sys.executable, str(script), str(path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_an_hour_is_read_once_in_bounded_memory(tmp_path: Path) -> None:
    hour = watched_alone(write_long(tmp_path / "hour.mp4", 3600))
    minute = watched_alone(write_long(tmp_path / "minute.mp4", 60))
    assert hour["pictures"] == 7200
    assert hour["peak"] < 1.5 * GIGABYTE
    # 113 windows of 32 latents of 128 floats are 1.9 MB, and the decoder reads them.
    assert hour["peak"] - minute["peak"] < 0.2 * GIGABYTE
