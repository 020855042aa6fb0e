"""Moments of a long video: they cover it, each is what the frames alone give, and the best one is found."""

from pathlib import Path

import pytest
import torch

from xgenvideo.config import RunConfig
from xgenvideo.data.generate import encode_video, make_twins, render
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError
from xgenvideo.infer.generate import generate, question_ids
from xgenvideo.infer.moments import Moments, answer_at, moment_for_question, moments, rank_by_caption, read_moments
from xgenvideo.infer.release import Release
from xgenvideo.infer.search import embed_text
from xgenvideo.models.video_lm import VideoLM


@pytest.fixture(scope="module")
def release(small_model: VideoLM, small_config: RunConfig, twins_tokenizer: Tokenizer) -> Release:
    return Release(Path("nowhere"), small_model, twins_tokenizer, small_config, {"short_side": 256}, {})


@pytest.mark.parametrize("count", [1, 5, 16, 64, 70, 130])
def test_moments_cover_every_frame_whatever_the_windows(release: Release, count: int) -> None:
    length = release.config.data.frames // 4
    torch.manual_seed(count)
    features = torch.randn(count, 4, release.config.model.vision.width)
    pts = torch.arange(count) / 2
    whole = read_moments(release, [(features, pts)])
    cut = read_moments(release, [(features[at : at + 10], pts[at : at + 10]) for at in range(0, count, 10)])
    assert whole.spans == cut.spans
    assert torch.allclose(whole.vectors, cut.vectors, atol=1e-5)
    covered = {frame for start, end in whole.spans for frame in range(round(2 * start), round(2 * end))}
    assert covered == set(range(count))
    assert all(end - start <= length / 2 for start, end in whole.spans)


def test_a_moment_is_what_its_frames_alone_give(release: Release) -> None:
    torch.manual_seed(0)
    features = torch.randn(40, 4, release.config.model.vision.width)
    found = read_moments(release, [(features, torch.arange(40) / 2)])
    start, end = (round(2 * second) for second in found.spans[3])
    seconds = torch.arange(end - start)[None] / 2
    with torch.no_grad():
        alone = release.model.latents(features[None, start:end], seconds, torch.ones_like(seconds, dtype=torch.bool))
    assert torch.allclose(found.latents[3], alone[0], atol=1e-5)


def test_the_moment_that_points_where_the_text_does_is_found(release: Release) -> None:
    text, question = "A red ring appears.", "What appears?"
    vectors = torch.zeros(9, release.config.model.embedding)
    vectors[4] = torch.from_numpy(embed_text(release, text))
    vectors[7] = torch.from_numpy(embed_text(release, f"{question} a ring"))
    latents = torch.zeros(9, 8, release.config.model.resampler.width)
    found = Moments(latents, vectors, tuple((i, i + 1.0) for i in range(9)))
    # Equal latents are equally likely, so the cosine alone decides.
    assert rank_by_caption(release, found, text)[0] == 4
    assert moment_for_question(release, found, question, ("a star", "a ring")) == 7
    assert len(rank_by_caption(release, found, text, considered=3)) == 3


def test_an_answer_is_written_from_the_moment_alone(release: Release, tmp_path: Path) -> None:
    scenes = [make_twins(3, number)[0] for number in range(4)]
    video = tmp_path / "long.mp4"
    encode_video(video, (frame for scene in scenes for frame in render(scene, 64)))
    seconds = sum(scene.seconds for scene in scenes)
    text, (start, end) = answer_at(release, video, "Which appears first?", scenes[2].caption, 8)
    assert 0 <= start < end <= seconds + 0.5
    found = moments(release, release.windows(video))
    best = found.spans.index((start, end))
    assert best == rank_by_caption(release, found, scenes[2].caption)[0]
    ids = question_ids("Which appears first?", release.tokenizer)
    (alone,) = generate(release.model, release.tokenizer, found.latents[best][None], [ids], 8)
    assert text == release.tokenizer.decode(alone).strip()
    with pytest.raises(ConfigError, match="--at"):
        answer_at(release, video, "Which appears first?", " ")
