"""Clips, a release in memory, and a server of it on loopback."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from xgenvideo.config import RunConfig, override
from xgenvideo.data.generate import encode_video, make_twins, render
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.infer.release import Release
from xgenvideo.infer.serving.app import create_app
from xgenvideo.models.video_lm import VideoLM


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three generated clips, one of them in a folder, and a text that calls itself a video."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    for index, name in enumerate(("a.mp4", "b.mp4", "more/c.mp4")):
        encode_video(folder / name, render(make_twins(5, index)[0], 64), 8)
    (folder / "text.mp4").write_text("not a video at all", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def release(small_model: VideoLM, small_config: RunConfig, twins_tokenizer: Tokenizer) -> Release:
    """A release in memory whose windows are 8 frames, so that short clips have several."""
    config = override(small_config, ["data.frames=8"])
    return Release(Path("nowhere"), small_model, twins_tokenizer, config, {"short_side": 256}, {"identity": "f" * 64})


@contextmanager
def running(release: Release, **options: Any) -> Iterator[str]:
    """The address of a server in a thread of this process, closed at the end."""
    app = create_app(release, **options)
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for _ in range(500):
            if server.started:
                break
            time.sleep(0.02)
        assert server.started, "the server did not start within 10 s"
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive(), "the server did not end within 30 s"
