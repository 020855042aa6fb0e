"""A loaded release on real video files: windows, answers and search."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xgenvideo.data.generate import make_twins
from xgenvideo.data.video import sample_video
from xgenvideo.errors import ConfigError, DataError, MediaError
from xgenvideo.infer import search as searching
from xgenvideo.infer.embed import embed_text
from xgenvideo.infer.release import Release, Sample
from xgenvideo.infer.search import Hit, search


def test_a_long_video_is_windows_with_their_own_times(release: Release, videos: Path) -> None:
    windows = list(release.windows(videos / "a.mp4"))
    count = len(make_twins(5, 0)[0].states)
    assert [window.start for window in windows] == [4.0 * i for i in range(len(windows))]
    assert sum(len(window.pts) for window in windows) == count
    assert torch.cat([window.pts for window in windows]).tolist() == pytest.approx([i / 2 for i in range(count)])
    latents = release.latents(videos / "a.mp4")
    queries = release.config.model.resampler.queries
    assert latents.shape == (1, queries * len(windows), release.config.model.resampler.width)
    assert torch.equal(latents[:, queries : 2 * queries], release.window_latents(windows[1]))
    assert not torch.allclose(release.window_latents(windows[1]), release.window_latents(windows[1], from_start=False))


def test_answers_captions_and_scores(release: Release, videos: Path) -> None:
    path = videos / "a.mp4"
    assert release.caption(path) == release.generate(path, "  ") == release.caption(path)
    assert isinstance(release.answer(path, "Which appears first?"), str)
    options = ["the red circle", "the blue star", "yes"]
    scores = release.score_options(release.latents(path), "Which appears first?", options)
    assert len(scores) == 3
    assert all(score < 0 for score in scores)
    assert len(set(scores)) == 3
    with pytest.raises(ConfigError, match="question"):
        release.answer(path, " ")
    with pytest.raises(ConfigError, match="tokens"):
        release.answer(path, "very " * 500)
    with pytest.raises(MediaError, match="not_a_video"):
        release.caption(videos / "text.mp4")


def vector_of(release: Release, hit: Hit) -> Any:
    """Unit vector [E] of a hit's frames, taken from the file anew, with a clock that starts at the first."""
    frames = round((hit.end - hit.start) * 2)
    taken = sample_video(hit.video, 2.0, frames, hit.start, 256)
    window = release.window(0, taken)
    features = release.model.encode_frames(window.frames)[None]
    pts = (window.pts - window.pts[0])[None]
    latents = release.model.latents(features, pts, torch.ones_like(pts, dtype=torch.bool))
    return release.model.video_embedding(latents)[0].numpy()


def test_search_ranks_by_cosine_and_reads_each_video_once(
    release: Release, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, said = tmp_path / "index.npz", list[str]()
    hits = search(release, videos, "a red circle moves left", top=100, index=index, say=said.append)
    assert said == ["text.mp4: left out, not_a_video"]
    assert {hit.video for hit in hits} == {videos / name for name in ("a.mp4", "b.mp4", "more/c.mp4")}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for hit in hits:
        apart = [one for one in hits if one.video == hit.video and one is not hit]
        assert all(one.end <= hit.start or hit.end <= one.start for one in apart), "no two hits overlap"
        with torch.inference_mode():
            vector = vector_of(release, hit)
        assert hit.score == pytest.approx(float(vector @ embed_text(release, "a red circle moves left")), abs=1e-5)
    lengths = {round(hit.end - hit.start, 3) for hit in hits}
    assert lengths <= {0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0}
    assert 1.0 in lengths, "a moment of a quarter of a window is found too"

    read: list[str] = []
    embed = searching.read_spans

    def counted(release: Release, path: Path, sample: Sample) -> Iterator[searching.Timed]:
        read.append(path.name)
        return embed(release, path, sample)

    monkeypatch.setattr(searching, "read_spans", counted)
    assert search(release, videos, "a red circle moves left", top=100, index=index, say=said.append) == hits
    assert read == []
    assert said == ["text.mp4: left out, not_a_video"] * 2, "what cannot be read is told again, and not read again"
    os.utime(videos / "b.mp4", ns=(1, 1))
    assert search(release, videos, "a red circle moves left", top=100, index=index) == hits
    assert read == ["b.mp4"]
    written = index.stat().st_mtime_ns
    assert search(release, videos, "a red circle moves left", top=1, index=index) == hits[:1]
    assert index.stat().st_mtime_ns == written, "nothing has changed, so nothing is written"


def test_what_is_removed_leaves_the_index_and_an_interruption_keeps_what_was_read(
    release: Release, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, index = tmp_path / "folder", tmp_path / "index.npz"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes((videos / name).read_bytes())
    embed = searching.read_spans

    def interrupted(release: Release, path: Path, sample: Sample) -> Iterator[searching.Timed]:
        if path.name == "b.mp4":
            raise KeyboardInterrupt
        return embed(release, path, sample)

    monkeypatch.setattr(searching, "read_spans", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(release, folder, "star", index=index)
    (folder / "b.mp4").unlink()
    hits = search(release, folder, "star", top=100, index=index)
    assert {hit.video.name for hit in hits} == {"a.mp4"}
    monkeypatch.undo()
    (folder / "b.mp4").write_bytes((videos / "b.mp4").read_bytes())
    (folder / "a.mp4").unlink()
    assert {hit.video.name for hit in search(release, folder, "star", top=100, index=index)} == {"b.mp4"}
    with np.load(index) as arrays:
        assert json.loads(arrays["about"].tobytes())["names"] == ["b.mp4"]


def test_a_broken_or_foreign_index_is_made_again(release: Release, videos: Path, tmp_path: Path) -> None:
    index = tmp_path / "index.npz"
    hits = search(release, videos, "star", index=index)
    index.write_bytes(b"PK not really")
    assert search(release, videos, "star", index=index) == hits
    np.savez(index, about=np.zeros(3), vectors=np.array([{}], dtype=object))
    assert search(release, videos, "star", index=index) == hits
    assert [path.name for path in tmp_path.iterdir()] == ["index.npz"]


def test_search_follows_no_link_out_and_refuses_nothing_to_look_for(
    release: Release, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "link.mp4").symlink_to(videos / "a.mp4")
    with pytest.raises(DataError, match="no video here"):
        search(release, tmp_path, "star", index=tmp_path / "index.npz")
    with pytest.raises(ConfigError, match="text"):
        search(release, videos, " ")
