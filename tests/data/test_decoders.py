"""Videos read in child processes: the same windows as in this one, and bounds that hold."""

import threading
from pathlib import Path

import av
import numpy as np
import pytest

from xgenvideo.data.decoders import Bounds, Decoders, Stopped
from xgenvideo.data.video import sample_windows
from xgenvideo.errors import MediaError


def write_video(path: Path, frames: int, size: int = 96) -> Path:
    """Two frames a second of growing brightness."""
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=2, options={"preset": "ultrafast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            picture = np.full((size, size, 3), number * 255 // frames, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def decoders() -> Decoders:
    """One child for the tests that leave it alive."""
    return Decoders(1, Bounds(max_seconds=60, max_pixels=100 * 100))


@pytest.fixture(scope="module", autouse=True)
def closed(decoders: Decoders) -> object:
    yield
    decoders.close()


def test_the_windows_are_those_of_this_process(decoders: Decoders, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 21)
    expected = list(sample_windows(path, 2.0, 8, 48))
    for _ in range(2):
        found = list(decoders.windows(path, 2.0, 8, 48))
        assert len(found) == len(expected) == 3
        for mine, theirs in zip(found, expected, strict=True):
            assert np.array_equal(mine.frames, theirs.frames)
            assert mine.pts.tolist() == theirs.pts.tolist()
            assert mine.indices.tolist() == theirs.indices.tolist()
            assert mine.seconds == theirs.seconds


def test_a_reason_for_what_is_not_read_and_the_child_goes_on(decoders: Decoders, tmp_path: Path) -> None:
    good = write_video(tmp_path / "good.mp4", 4)
    (tmp_path / "text.mp4").write_text("not a video at all")
    long, large = write_video(tmp_path / "long.mp4", 130), write_video(tmp_path / "large.mp4", 4, size=128)
    for path, reason in (
        (tmp_path / "text.mp4", "not_a_video"),
        (tmp_path / "none.mp4", "missing_file"),
        (long, "too_long"),
        (large, "too_large"),
    ):
        with pytest.raises(MediaError) as raised:
            list(decoders.windows(path))
        assert (raised.value.reason, raised.value.path) == (reason, path)
        assert len(list(decoders.windows(good))) == 1


def test_what_is_left_half_read_does_not_reach_the_next(decoders: Decoders, tmp_path: Path) -> None:
    path, other = write_video(tmp_path / "a.mp4", 40), write_video(tmp_path / "b.mp4", 3)
    half = decoders.windows(path, 2.0, 8)
    next(half)
    half.close()  # type: ignore[attr-defined]
    assert [len(one.frames) for one in decoders.windows(other, 2.0, 8)] == [3]
    stop = threading.Event()
    stopped = decoders.windows(path, 2.0, 8, stop=stop)
    next(stopped)
    stop.set()
    with pytest.raises(Stopped):
        list(stopped)
    assert [len(one.frames) for one in decoders.windows(other, 2.0, 8)] == [3]


def test_a_decoder_that_takes_too_long_or_too_much_is_ended(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 60, size=640)
    with Decoders(1, Bounds(cpu_seconds=0.02)) as slow, pytest.raises(MediaError, match="decode_timeout"):
        list(slow.windows(path))
    with Decoders(1, Bounds(memory_mb=500)) as small, pytest.raises(MediaError, match=r"too_large|decoder_crashed"):
        list(small.windows(path, 2.0, 64, 640))
