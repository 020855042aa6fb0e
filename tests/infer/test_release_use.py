"""A loaded release on real video files: windows, answers, search and the server's door."""

import asyncio
import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from xgenvideo.config import RunConfig, override
from xgenvideo.data.generate import encode_video, make_twins, render
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError, DataError, MediaError
from xgenvideo.infer import search as searching
from xgenvideo.infer.release import Release, Sample
from xgenvideo.infer.search import embed_text, search
from xgenvideo.infer.serve import Limits, create_app, serve
from xgenvideo.models.video_lm import VideoLM


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generated clips, one of them in a folder, and a text that calls itself a video."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    for index, name in enumerate(("a.mp4", "b.mp4", "more/c.mp4")):
        encode_video(folder / name, render(make_twins(5, index)[0], 64), 8)
    (folder / "text.mp4").write_text("not a video at all", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def release(small_model: VideoLM, small_config: RunConfig, twins_tokenizer: Tokenizer) -> Release:
    """A release in memory whose windows are 8 frames, so that short clips have several."""
    config = override(small_config, ["data.frames=8"])
    return Release(Path("nowhere"), small_model, twins_tokenizer, config, {"short_side": 256}, {"identity": "f" * 64})


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


def test_search_ranks_by_cosine_and_reads_each_video_once(
    release: Release, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, said = tmp_path / "index.npz", list[str]()
    hits = search(release, videos, "a red circle moves left", top=100, index=index, say=said.append)
    assert said == ["text.mp4: left out, not_a_video"]
    assert {hit.video for hit in hits} == {videos / name for name in ("a.mp4", "b.mp4", "more/c.mp4")}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    best = hits[0]
    window = next(one for one in release.windows(best.video) if one.start == best.start)
    with torch.inference_mode():
        vector = release.model.video_embedding(release.window_latents(window, from_start=False))[0].numpy()
    assert best.score == pytest.approx(float(vector @ embed_text(release, "a red circle moves left")), abs=1e-5)
    assert best.end == pytest.approx(float(window.pts[-1]) + 0.5)

    read: list[str] = []
    embed = searching.embed_video

    def counted(release: Release, path: Path, sample: Sample) -> Iterator[searching.Timed]:
        read.append(path.name)
        return embed(release, path, sample)

    monkeypatch.setattr(searching, "embed_video", counted)
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
    embed = searching.embed_video

    def interrupted(release: Release, path: Path, sample: Sample) -> Iterator[searching.Timed]:
        if path.name == "b.mp4":
            raise KeyboardInterrupt
        return embed(release, path, sample)

    monkeypatch.setattr(searching, "embed_video", interrupted)
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


def ask(release: Release, limits: Limits, body: Any, **headers: str) -> httpx.Response:
    """POST one request to the application, in this process."""

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(release, limits))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            content = body if isinstance(body, str) else json.dumps(body)
            sent = {"content-type": "application/json"} | headers
            return await client.post("/v1/chat/completions", content=content, headers=sent)

    return asyncio.run(post())


def chat(url: str, text: str = "Which appears first?", **more: Any) -> dict[str, Any]:
    """A chat request about one video."""
    parts = [{"type": "text", "text": text}, {"type": "video_url", "video_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 8, **more}


def test_the_server_answers_about_what_is_sent_and_what_is_allowed(release: Release, videos: Path) -> None:
    expected = release.generate(videos / "a.mp4", "Which appears first?", 8)
    data = base64.b64encode((videos / "a.mp4").read_bytes()).decode()
    for url in (f"data:video/mp4;base64,{data}", "a.mp4", f"file://{(videos / 'a.mp4').resolve()}"):
        response = ask(release, Limits(videos), chat(url))
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"] == expected


def test_the_server_opens_nothing_else(release: Release, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes((videos / "a.mp4").read_bytes())
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    limits = Limits(tmp_path / "allowed")
    for url in ("../secret.mp4", str(tmp_path / "secret.mp4"), "link.mp4", "missing.mp4", "a\0b", "/dev/zero"):
        response = ask(release, limits, chat(url))
        assert response.status_code == 400
        assert "is not a file in the allowed folder" in response.json()["error"]["message"]
    assert "--allow" in ask(release, Limits(), chat("a.mp4")).text
    assert "other machines" in ask(release, limits, chat("http://example.org/a.mp4")).text


def test_the_server_refuses_what_it_cannot_do(release: Release, videos: Path) -> None:
    small = Limits(videos, max_mb=0.001)
    assert "at most 0.001 MB" in ask(release, small, chat("a.mp4")).text
    assert "at most 0.001 MB" in ask(release, small, chat("data:video/mp4;base64," + "A" * 2000)).text
    limits = Limits(videos)
    for body, expected in (
        ("{", "JSON"),
        ([], "messages"),
        ({"messages": []}, "content"),
        ({"messages": [{"role": "user", "content": "text only"}]}, "one video part"),
        (chat("data:video/mp4;base64,???"), "base64"),
        (chat("text.mp4"), "not_a_video"),
        (chat("a.mp4", temperature="hot"), "temperature"),
        (chat("a.mp4", top_p=0), "top_p"),
        (chat("a.mp4", stream=True), "stream"),
    ):
        response = ask(release, limits, body)
        assert response.status_code == 400
        assert expected in response.text


def test_a_web_page_cannot_speak_for_the_user(release: Release, videos: Path) -> None:
    assert ask(release, Limits(videos), chat("a.mp4"), host="evil.example").status_code == 400
    foreign = ask(release, Limits(videos), chat("a.mp4"), **{"content-type": "text/plain"})
    assert "application/json" in foreign.text
    with pytest.raises(ConfigError, match="loopback"):
        serve(release, host="0.0.0.0")
