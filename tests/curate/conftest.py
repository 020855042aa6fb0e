"""A folder of every kind of broken input, made on the spot."""

import json
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from xgenvideo.curate.duplicates import Fingerprint, Sketches, find_duplicates
from xgenvideo.curate.settings import CurateSettings

CAPTION = "A bright square moves slowly over a dark floor and then stops."


def write_clip_file(
    path: Path, frames: int = 24, seed: int = 0, size: int = 64, times: list[float] | None = None
) -> None:
    """A bright square that wanders over a dark ground, 8 frames a second."""
    rng = np.random.default_rng(seed)
    start, step = rng.integers(4, 20, 2), rng.integers(1, 3, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            picture = np.full((size, size, 3), 30 + 3 * seed, np.uint8)
            x, y = (start + number * step) % (size - 16)
            picture[y : y + 16, x : x + 16] = (200, 180, 60)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (times[number] if times else number / 8)), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def _write_audio(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 16000, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def _write_huge(path: Path) -> None:
    with av.open(str(path), "w", format="avi") as file:
        stream = file.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 176, 208, "yuvj420p"
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((208, 176, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode(None))
    content = path.read_bytes().replace(struct.pack(">HH", 208, 176), struct.pack(">HH", 16000, 16000))
    path.write_bytes(content.replace(struct.pack("<ii", 176, 208), struct.pack("<ii", 16000, 16000)))


def _write_rotated(path: Path) -> None:
    write_clip_file(path, seed=3)
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 64 << 16, 0, 0x40000000)
    path.write_bytes(content)


def line(key: str, video: str, caption: str = CAPTION, **more: object) -> bytes:
    """One line of pairs.jsonl."""
    record = {"key": key, "video": video, "caption": caption, "source": f"source-{key}", "split": "train"}
    return json.dumps(record | more).encode() + b"\n"


@pytest.fixture
def broken(tmp_path: Path) -> tuple[Path, Path, dict[str, str | None]]:
    """(the input folder, a folder outside it, and for each key the reason expected, None for kept)."""
    root, outside = tmp_path / "raw", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    secret = outside / "secret.mp4"
    write_clip_file(secret)
    write_clip_file(root / "good.mp4", seed=1)
    content = (root / "good.mp4").read_bytes()
    (root / "empty.mp4").touch()
    (root / "truncated.mp4").write_bytes(content[: len(content) // 2])
    (root / "text.mp4").write_text("not a video at all\n" * 20)
    (root / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
    (root / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:4,\n{secret}\n#EXT-X-ENDLIST\n")
    (root / "link.mp4").symlink_to(secret)
    write_clip_file(root / "one_frame.mp4", frames=1)
    write_clip_file(root / "variable.mp4", frames=9, seed=5, times=[0, 0.1, 0.3, 0.4, 1.1, 1.2, 2.6, 2.7, 3.4])
    _write_audio(root / "audio.mp4")
    _write_huge(root / "huge.avi")
    _write_rotated(root / "rotated.mp4")
    lines = [
        (line("good", "good.mp4"), None),
        (line("good", "variable.mp4"), "duplicate_key"),
        (line("empty", "empty.mp4"), "empty_file"),
        (line("truncated", "truncated.mp4"), "truncated"),
        (line("text", "text.mp4"), "not_a_video"),
        (line("concat", "concat.mp4"), "not_a_video"),
        (line("playlist", "playlist.mp4"), "not_a_video"),
        (line("audio", "audio.mp4"), "no_video_stream"),
        (line("one", "one_frame.mp4"), "too_short"),
        (line("variable", "variable.mp4"), None),
        (line("rotated", "rotated.mp4"), None),
        (line("huge", "huge.avi"), "too_large"),
        (line("gone", "gone.mp4"), "missing_file"),
        (line("folder", "."), "missing_file"),
        (line("up", "../outside/secret.mp4"), "outside_folder"),
        (line("absolute", str(secret)), "outside_folder"),
        (line("link", "link.mp4"), "outside_folder"),
        (line("url", "file:///etc/passwd"), "outside_folder"),
        (line("latin", "good.mp4").replace(b"bright", b"br\xe9ight"), "caption_encoding"),
        (line("surrogate", "good.mp4", caption="half \ud800 of a pair is here"), "caption_encoding"),
        (b"{not json\n", "bad_record"),
        (b"[1, 2]\n", "bad_record"),
        (line("no/key", "good.mp4"), "bad_record"),
        (line("number", "good.mp4", caption=7), "bad_record"),  # type: ignore[arg-type]
        (line("question", "good.mp4", questions=[{"text": "?"}]), "bad_record"),
    ]
    (root / "pairs.jsonl").write_bytes(b"".join(content for content, _ in lines))
    return root, outside, {str(number): reason for number, (_, reason) in enumerate(lines)}


def duplicates_among(prints: dict[str, Fingerprint]) -> dict[str, tuple[str, float]]:
    """As curation finds them, by name."""
    names, clips = list(prints), list(prints.values())
    found = find_duplicates(Sketches.of(clips), clips.__getitem__, CurateSettings())
    return {names[place]: (names[kept], alike) for place, (kept, alike) in found.items()}
