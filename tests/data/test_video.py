"""Sampling by presentation time, and every kind of broken file refused with its reason code."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from xgenvideo.data.container import sniff_container
from xgenvideo.data.video import nearest_frames, probe, sample_video, sample_windows
from xgenvideo.errors import ConfigError, MediaError


def write_video(
    path: Path,
    times: Sequence[float] = tuple(i / 8 for i in range(32)),
    size: tuple[int, int] = (96, 64),
    container: str = "mp4",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
) -> Path:
    """Frames at `times` seconds; frame i is grey of level 4 i + 20, its left third black."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=8, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            picture = np.full((size[1], size[0], 3), 4 * number + 20, np.uint8)
            picture[:, : size[0] // 3] = 0
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, 16000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 16000, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def rotate_header(path: Path) -> Path:
    """Write a quarter turn clockwise into the track header, as phones do."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    turn = (0, 0x10000, 0, -0x10000, 0, 0, 64 << 16, 0, 0x40000000)
    content[start : start + 36] = struct.pack(">9i", *turn)
    path.write_bytes(content)
    return path


def write_huge(path: Path, side: int = 16000) -> Path:
    """A small MJPEG file whose headers claim `side` x `side` pixels."""
    write_video(path, times=(0, 0.5, 1.0), size=(176, 208), container="avi", codec="mjpeg")
    content = path.read_bytes().replace(struct.pack(">HH", 208, 176), struct.pack(">HH", side, side))
    path.write_bytes(content.replace(struct.pack("<ii", 176, 208), struct.pack("<ii", side, side)))
    return path


def reason_of(path: Path) -> str:
    with pytest.raises(MediaError) as caught:
        sample_video(path)
    return caught.value.reason


def levels(frames: np.ndarray) -> list[int]:
    """The numbers of the frames, read off their grey levels."""
    return [round((float(np.median(frame[:, frame.shape[1] // 2 :])) - 20) / 4) for frame in frames]


def test_takes_the_frames_at_half_seconds(tmp_path: Path) -> None:
    sampled = sample_video(write_video(tmp_path / "a.mp4"))
    assert sampled.indices.tolist() == [0, 4, 8, 12, 16, 20, 24, 28]
    assert levels(sampled.frames) == sampled.indices.tolist()
    assert sampled.pts == pytest.approx(np.arange(8) / 2)
    assert sampled.seconds == pytest.approx(4.0, abs=0.01)
    assert sampled.effective_fps == pytest.approx(2.0)


def test_variable_frame_rate_takes_the_nearest_frame_and_repeats_none(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.3, 0.45, 0.9, 2.6, 2.7, 3.1]
    sampled = sample_video(write_video(tmp_path / "a.mp4", times))
    assert sampled.indices.tolist() == [0, 4, 5, 6, 8]  # targets 1.5 and 2.0 are nearest to frames already taken
    assert levels(sampled.frames) == sampled.indices.tolist()
    assert sampled.pts == pytest.approx([0.0, 0.45, 0.9, 2.6, 3.1], abs=0.001)


@pytest.mark.parametrize(
    ("container", "options"),
    [
        ("mp4", {"bf": "3", "g": "12"}),
        ("matroska", {"bf": "2", "g": "6"}),
        ("mpegts", {"g": "8"}),
        ("avi", {"bf": "0"}),
    ],
)
def test_reordered_frames_and_other_containers(tmp_path: Path, container: str, options: dict[str, str]) -> None:
    path = write_video(tmp_path / "a.bin", container=container, options=options)
    for start in (0.0, 1.25, 2.0):
        sampled = sample_video(path, start=start)
        assert sampled.indices[0] == round(start * 8)
        assert levels(sampled.frames) == sampled.indices.tolist()


def test_start_and_most_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", options={"g": "4"})
    assert sample_video(path, start=2.0, max_frames=3).indices.tolist() == [16, 20, 24]
    with pytest.raises(MediaError, match="too_short"):
        sample_video(path, start=100.0)
    with pytest.raises(ConfigError):
        sample_video(path, fps=0)


def test_scales_down_and_never_up(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", size=(96, 64))
    assert sample_video(path, short_side=32).frames.shape[1:3] == (32, 48)
    assert sample_video(path, short_side=256).frames.shape[1:3] == (64, 96)


def test_rotation_is_applied(tmp_path: Path) -> None:
    path = rotate_header(write_video(tmp_path / "a.mp4", size=(96, 64)))
    frames = sample_video(path).frames
    assert frames.shape[1:3] == (96, 64)
    assert frames[4, :20].mean() < 12 < frames[4, 40:].mean()  # what was left is now on top
    facts = probe(path)
    assert (facts.width, facts.height) == (64, 96)


def test_one_frame_is_sampled_once(tmp_path: Path) -> None:
    assert len(sample_video(write_video(tmp_path / "a.mp4", times=(0.0,))).frames) == 1


def test_probe(tmp_path: Path) -> None:
    facts = probe(write_video(tmp_path / "a.mp4"))
    assert (facts.width, facts.height, facts.frames, facts.codec) == (96, 64, 32, "h264")
    assert facts.fps == pytest.approx(8, abs=0.1)
    assert not facts.audio


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.97])
@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_truncated(tmp_path: Path, container: str, keep: float) -> None:
    path = write_video(tmp_path / "a.mp4", container=container)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert reason_of(path) == "truncated"


def test_reason_codes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert reason_of(path) == "missing_file"
    path.write_bytes(b"")
    assert reason_of(path) == "empty_file"
    path.write_text("this is text, whatever it is called\n" * 50)
    assert reason_of(path) == "not_a_video"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert reason_of(path) == "unknown_container"
    assert reason_of(write_audio(tmp_path / "b.mp4")) == "no_video_stream"
    assert reason_of(write_huge(tmp_path / "c.avi")) == "too_large"
    # Past what the decoder itself takes, it reports no size at all.
    assert reason_of(write_huge(tmp_path / "d.avi", side=16384)) in {"too_large", "decode_failed"}


@pytest.mark.parametrize(
    "playlist",
    [
        "ffconcat version 1.0\nfile {target}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{target}\n#EXT-X-ENDLIST\n",
        "{target}\n",
    ],
)
def test_playlists_never_name_another_file(tmp_path: Path, playlist: str) -> None:
    target = write_video(tmp_path / "secret.mp4")
    path = tmp_path / "a.mp4"
    path.write_text(playlist.format(target=target))
    assert reason_of(path) == "not_a_video"


def test_damaged_pictures_are_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", size=(320, 240))
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    noise = np.random.default_rng(0).bytes(end - start)
    content[start:end] = noise
    path.write_bytes(content)
    assert reason_of(path) in {"decode_failed", "truncated"}


def test_nearest_frames_prefers_the_earlier_on_a_tie() -> None:
    assert nearest_frames(np.array([0.0, 0.25, 0.75, 1.0]), 2.0, 64).tolist() == [0, 1, 3]
    assert nearest_frames(np.array([0.0]), 2.0, 64).tolist() == [0]
    assert nearest_frames(np.arange(1000) / 10, 2.0, 64).size == 64


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    with pytest.raises(MediaError, match="unknown_container"):
        sniff_container(path)


@pytest.mark.parametrize(
    "times",
    [
        [i / 5 for i in range(55)],
        [0.0, 0.1, 0.2, 3.1, 3.9, 4.0, 4.1, 9.7, 11.3],
        [0.0, 7.9],
        [0.0],
    ],
    ids=["steady", "variable", "sparse", "one"],
)
def test_windows_read_in_one_pass_are_those_sampled_alone(tmp_path: Path, times: list[float]) -> None:
    path = write_video(tmp_path / "long.mp4", times)
    windows = list(sample_windows(path, fps=2.0, frames=4, short_side=32))
    for number, window in enumerate(windows):
        alone = sample_video(path, 2.0, 4, start=number * 4 / 2.0, short_side=32)
        assert np.array_equal(window.frames, alone.frames)
        assert np.array_equal(window.pts, alone.pts)
        assert window.seconds == alone.seconds
    with pytest.raises(MediaError, match="too_short"):
        sample_video(path, 2.0, 4, start=len(windows) * 4 / 2.0)
