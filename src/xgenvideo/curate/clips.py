"""A decoded clip between steps: JPEG frames with times and small ordered thumbnails, one file, safe to read back."""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.errors import DataError
from xgenvideo.records import SampledVideo

THUMB = 16


@dataclass(frozen=True, repr=False)
class Clip:
    """jpegs, pts [F] seconds, thumbs [F 16 16 3] uint8 RGB: the whole frame squeezed, whatever its shape."""

    jpegs: tuple[bytes, ...]
    pts: NDArray[np.float64]
    thumbs: NDArray[np.uint8]

    def __repr__(self) -> str:
        return f"Clip(frames={len(self.jpegs)}, seconds={self.pts[-1]:.1f})"

    @staticmethod
    def from_sampled(sampled: SampledVideo, quality: int) -> "Clip":
        """Encode sampled frames."""
        thumbs = np.stack([cv2.resize(f, (THUMB, THUMB), interpolation=cv2.INTER_AREA) for f in sampled.frames])
        return Clip(tuple(_encode(f, quality) for f in sampled.frames), sampled.pts, thumbs.astype(np.uint8))

    def frames(self, count: int) -> list[NDArray[np.uint8]]:
        """At most `count` decoded frames [H W 3] RGB, spread evenly over the clip."""
        places = np.unique(np.linspace(0, len(self.jpegs) - 1, count + 2).round().astype(int)[1:-1])
        return [decode_jpeg(self.jpegs[place]) for place in places]


def _encode(frame: NDArray[np.uint8], quality: int) -> bytes:
    done, content = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, f"JPEG of {frame.shape} failed"
    return content.tobytes()


def decode_jpeg(content: bytes) -> NDArray[np.uint8]:
    """[H W 3] RGB. Raises DataError for what is no picture."""
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise DataError("a stored frame is not a JPEG")
    return np.ascontiguousarray(picture[..., ::-1]).astype(np.uint8, copy=False)


def clip_path(folder: Path, sampling: str, content: str) -> Path:
    """Where the decoded clip of a content hash lies, in one of 256 folders; other sampling, another file."""
    return folder / content[:2] / f"{content[2:32]}-{sampling}.npz"


def write_clip(path: Path, clip: Clip) -> None:
    """Write under a temporary name, then rename."""
    # Another machine may be writing the same clip, under another name that holds the same content.
    temporary = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.tmp")
    lengths = np.array([len(jpeg) for jpeg in clip.jpegs], np.int64)
    with temporary.open("wb") as file:
        joined = np.frombuffer(b"".join(clip.jpegs), np.uint8)
        np.savez(file, lengths=lengths, jpegs=joined, pts=clip.pts, thumbs=clip.thumbs)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_thumbs(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Thumbnails [F 16 16 3] and pts [F] of a clip, without its frames."""
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["thumbs"], arrays["pts"]


def read_clip(path: Path) -> Clip:
    """Read what `write_clip` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        ends = np.cumsum(arrays["lengths"])
        joined = arrays["jpegs"].tobytes()
        jpegs = tuple(joined[end - size : end] for end, size in zip(ends, arrays["lengths"], strict=True))
        return Clip(jpegs, arrays["pts"], arrays["thumbs"])
