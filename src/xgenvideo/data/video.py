"""Video files to frames at target times: the nearest frame by presentation timestamp, resized while decoding.

A file is opened once, by us; the demuxer is chosen from its first bytes out of a short list, so that a text playlist
(ffconcat, HLS, image2) is never read as a video and can never name another file.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from av.video.stream import VideoStream
from numpy.typing import NDArray

from xgenvideo.data.container import check_complete, sniff_container
from xgenvideo.errors import ConfigError, MediaError
from xgenvideo.records import SampledVideo

MAX_PIXELS = 64 * 2**20  # a 8192 x 8192 frame; larger ones are refused before one is decoded
MAX_SIDE = 16384 - 1
MAX_TIMED_FRAMES = 4_000_000  # 37 hours at 30 FPS: bounds the memory of the timestamp index


@dataclass(frozen=True)
class Probe:
    """What a video file says of itself. Width and height are as displayed: after rotation and pixel aspect ratio."""

    width: int
    height: int
    seconds: float
    frames: int
    codec: str
    rotation: int
    container: str
    fps: float
    audio: bool


@dataclass(frozen=True)
class _Index:
    """Every frame in order of presentation.

    seconds [N] from the first frame on; groups [N]: the group of pictures, in decoding order, that holds the frame;
    leading [N]: it also needs the group before; ticks [N] as in the file, None where frames are known by order only.
    """

    seconds: NDArray[np.float64]
    ticks: NDArray[np.int64] | None
    groups: NDArray[np.int64]
    leading: NDArray[np.bool_]
    tail: float

    @property
    def total(self) -> float:
        return float(self.seconds[-1]) + self.tail

    def needed(self, wanted: NDArray[np.int64]) -> set[int]:
        """Groups of pictures to decode for the wanted frames. Without times the decoder's order is all there is."""
        if self.ticks is None:
            return set(self.groups.tolist())
        before = self.groups[wanted[self.leading[wanted]]] - 1
        return set(self.groups[wanted].tolist()) | set(np.maximum(before, 0).tolist())


def _refuse_open(*unused: Any) -> Any:
    raise PermissionError("a video may not open another file")


@contextmanager
def _open_video(path: Path, threads: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream, with sizes checked. Every failure is a MediaError with a reason code."""
    name = sniff_container(path)
    with path.open("rb") as file:
        check_complete(file, name, path)
        options = {"protocol_whitelist": "file", "format_whitelist": name}
        try:
            with av.open(file, "r", format=name, container_options=options, io_open=_refuse_open) as container:
                streams = [s for s in container.streams.video if not _is_picture(s)]
                if not streams:
                    raise MediaError("no_video_stream", path)
                _check_size(streams[0], path)
                streams[0].codec_context.thread_count = threads
                streams[0].codec_context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
                yield container, streams[0]
        except MediaError:
            raise
        except MemoryError as error:
            raise MediaError("too_large", path, "more memory than this process may use") from error
        except (av.error.FFmpegError, OSError, ValueError, RuntimeError) as error:
            raise MediaError("decode_failed", path, str(error)) from error


def _is_picture(stream: VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _check_size(stream: VideoStream, path: Path) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise MediaError("too_large", path, f"{width} x {height} pixels, at most {MAX_PIXELS} and {MAX_SIDE} a side")
    if width < 2 or height < 2:
        # Also what is left of a size beyond the decoder's own limit, some 16384 x 16384.
        raise MediaError("decode_failed", path, f"no picture size that a decoder takes ({width} x {height})")


def _index(container: InputContainer, stream: VideoStream, path: Path) -> _Index:
    """Times of all frames from their packets, nothing decoded: right for variable frame rates and reordered frames."""
    rows: list[tuple[int | None, int | None, int, int]] = []
    group = -1
    for packet in container.demux(stream):
        group += bool(packet.size and packet.is_keyframe)
        if packet.size and not packet.is_discard:
            rows.append((packet.pts, packet.dts, max(0, group), packet.duration or 0))
            if len(rows) > MAX_TIMED_FRAMES:
                raise MediaError("too_large", path, f"more than {MAX_TIMED_FRAMES} frames")
    if not rows:
        raise MediaError("no_video_stream", path, "its video stream has no frames")
    # Other containers count empty slots (AVI) or estimate.
    if container.format.name == "mov" and len(rows) < 0.98 * stream.frames - 1:
        raise MediaError("truncated", path, f"{len(rows)} of {stream.frames} frames")
    base = float(stream.time_base or 0)
    presented = all(row[0] is not None for row in rows)
    raw = [row[0] if presented else row[1] for row in rows]
    if base <= 0 or any(value is None for value in raw):
        raise MediaError("no_timestamps", path)
    return _sorted_index(np.array(raw, np.int64), rows, base, presented, path)


def _sorted_index(
    times: NDArray[np.int64],
    rows: list[tuple[int | None, int | None, int, int]],
    base: float,
    presented: bool,
    path: Path,
) -> _Index:
    order = np.argsort(times, kind="stable")
    ticks = times[order]
    if len(ticks) > 1 and ticks[0] == ticks[-1]:
        raise MediaError("no_timestamps", path, "all frames have the same time")
    groups = np.array([row[2] for row in rows])
    # The first packet of a group is its keyframe; frames shown before it lean on the group before.
    key_times = times[np.unique(groups, return_index=True)[1]]
    leading = (times < key_times[np.searchsorted(np.unique(groups), groups)])[order]
    tail = rows[order[-1]][3] * base or (float(np.median(np.diff(ticks))) * base if len(ticks) > 1 else 0.0)
    return _Index((ticks - ticks[0]) * base, ticks if presented else None, groups[order], leading, tail)


def _display(stream: VideoStream, rotation: int) -> tuple[int, int]:
    """Width and height in square pixels, after rotation."""
    width, height = stream.codec_context.width, stream.codec_context.height
    aspect = stream.sample_aspect_ratio
    if aspect and 0.1 < float(aspect) < 10:
        width = max(1, round(width * float(aspect)))
    return (height, width) if rotation % 180 else (width, height)


def probe(path: Path) -> Probe:
    """Size, length and codec of a video; decodes one frame, for the rotation. Raises MediaError with a reason code."""
    return probe_and_sample(path, max_frames=1, short_side=16)[0]


def nearest_frames(seconds: NDArray[np.float64], fps: float, max_frames: int, start: float = 0.0) -> NDArray[np.int64]:
    """Frame numbers [F] nearest to start + i/fps, each at most once. seconds [N] are all frames' times, ascending."""
    count = int(np.floor((seconds[-1] - start) * fps + 1e-6)) + 1
    targets = start + np.arange(max(0, min(count, max_frames))) / fps
    right = np.clip(np.searchsorted(seconds, targets), 1, max(1, len(seconds) - 1))
    right = np.minimum(right, len(seconds) - 1)
    left = np.maximum(right - 1, 0)
    # On a tie the earlier frame: the later one is not visible yet at the target time.
    chosen = np.where(seconds[right] - targets < targets - seconds[left], right, left)
    return np.unique(chosen).astype(np.int64)


def sample_video(
    path: Path,
    fps: float = 2.0,
    max_frames: int = 64,
    start: float = 0.0,
    short_side: int | None = None,
    threads: int = 1,
) -> SampledVideo:
    """Frames nearest to start + i/fps seconds, upright, square pixels, short side at most `short_side`, never upscaled.

    Fewer than `max_frames` frames come back for a short clip: nothing is repeated. `seconds` is the whole video's
    length. Raises MediaError with a reason code, ConfigError for an impossible request.
    """
    return probe_and_sample(path, fps, max_frames, start, short_side, threads)[1]


def probe_and_sample(
    path: Path,
    fps: float = 2.0,
    max_frames: int = 64,
    start: float = 0.0,
    short_side: int | None = None,
    threads: int = 1,
) -> tuple[Probe, SampledVideo]:
    """Both answers of `probe` and `sample_video`, for the price of the second."""
    path = Path(path)
    if not (np.isfinite(fps) and fps > 0 and max_frames >= 1 and np.isfinite(start) and start >= 0):
        raise ConfigError("sample_video", (fps, max_frames, start), "fps > 0, max_frames >= 1 and start >= 0 seconds")
    with _open_video(path, threads) as (container, stream):
        index = _index(container, stream, path)
    wanted = nearest_frames(index.seconds, fps, max_frames, start)
    if not len(wanted):
        raise MediaError("too_short", path, f"{index.total:.2f} s, sampling starts at {start:.2f} s")
    # Opened again instead of rewound: not every container seeks back to its exact beginning.
    with _open_video(path, threads) as (container, stream):
        frames, rotation = [], 0
        for frame in _decode(container, stream, index, wanted, path):
            rotation = frame.rotation
            frames.append(_upright(frame, stream, short_side, path))
        if len({frame.shape for frame in frames}) > 1:
            raise MediaError("decode_failed", path, "the frame size changes inside the video")
        sampled = SampledVideo(np.stack(frames), index.seconds[wanted], wanted, index.total)
        return _facts(container, stream, index, rotation), sampled


def sample_windows(
    path: Path, fps: float = 2.0, frames: int = 64, short_side: int | None = None, threads: int = 1
) -> Iterator[SampledVideo]:
    """The windows of a whole video: window w is what `sample_video` takes from w * frames / fps seconds on.

    The file is decoded once, from its start to its end, and one window is held at a time. Raises as `sample_video`.
    """
    path = Path(path)
    if not (np.isfinite(fps) and fps > 0 and frames >= 1):
        raise ConfigError("sample_windows", (fps, frames), "fps > 0 and frames >= 1")
    with _open_video(path, threads) as (container, stream):
        index = _index(container, stream, path)
    # Starts as products: sums would drift from what a window sampled alone has.
    starts = (number * frames / fps for number in range(int(index.total * fps / frames) + 1))
    planned = [nearest_frames(index.seconds, fps, frames, start) for start in starts]
    windows = [window for window in planned if len(window)]
    wanted = np.unique(np.concatenate(windows))
    with _open_video(path, threads) as (container, stream):
        numbered = zip(wanted.tolist(), _decode(container, stream, index, wanted, path), strict=True)
        held: dict[int, NDArray[np.uint8]] = {}
        for window in windows:
            while window[-1] not in held:
                number, frame = next(numbered)
                held[number] = _upright(frame, stream, short_side, path)
            pictures = [held[number] for number in window.tolist()]
            if len({picture.shape for picture in pictures}) > 1:
                raise MediaError("decode_failed", path, "the frame size changes inside the video")
            # Between frames far apart, one may be the nearest for the end of a window and the start of the next.
            held = {int(window[-1]): pictures[-1]}
            yield SampledVideo(np.stack(pictures), index.seconds[window], window, index.total)


def _facts(container: InputContainer, stream: VideoStream, index: _Index, rotation: int) -> Probe:
    width, height = _display(stream, rotation)
    return Probe(
        width=width,
        height=height,
        seconds=index.total,
        frames=len(index.seconds),
        codec=stream.codec_context.name,
        rotation=rotation % 360,
        container=container.format.name,
        fps=len(index.seconds) / index.total if index.total > 0 else 0.0,
        audio=bool(container.streams.audio),
    )


def _decode(
    container: InputContainer, stream: VideoStream, index: _Index, wanted: NDArray[np.int64], path: Path
) -> Iterator[VideoFrame]:
    """The wanted frames in order; groups of pictures without one are not decoded."""
    due = deque(wanted.tolist())
    for counted, frame in enumerate(_frames_of(container, stream, index.needed(wanted))):
        position = counted
        if index.ticks is not None:
            if frame.pts is None:
                raise MediaError("no_timestamps", path, "a decoded frame has no time")
            position = int(np.searchsorted(index.ticks, frame.pts))
        if position > due[0]:
            raise MediaError("decode_failed", path, f"frame {due[0]} could not be decoded")
        if position == due[0]:
            if frame.is_corrupt:
                raise MediaError("decode_failed", path, f"frame {due[0]} is corrupt")
            due.popleft()
            yield frame
            if not due:
                return
    raise MediaError("truncated", path, f"the video ends before frame {due[0]}")


def _frames_of(container: InputContainer, stream: VideoStream, groups: set[int]) -> Iterator[VideoFrame]:
    """Decoded frames of the given groups of pictures, in order of presentation."""
    group, skipped = -1, False
    decoder = stream.codec_context
    for packet in container.demux(stream):
        if not packet.size:
            continue
        group += packet.is_keyframe
        if max(0, group) in groups:
            if skipped:
                yield from decoder.decode(None)
                decoder.flush_buffers()
                skipped = False
            yield from decoder.decode(packet)
        else:
            skipped = True
        if group > max(groups):
            break
    yield from decoder.decode(None)


def _upright(frame: VideoFrame, stream: VideoStream, short_side: int | None, path: Path) -> NDArray[np.uint8]:
    """[H W 3] RGB of one decoded frame; scaled before the rotation, so only the small picture is turned."""
    width, height = _display(stream, 0)
    if (frame.width, frame.height) != (stream.codec_context.width, stream.codec_context.height):
        width, height = frame.width, frame.height
    if width * height > MAX_PIXELS:
        raise MediaError("too_large", path, f"{width} x {height} pixels")
    scale = 1.0 if short_side is None else min(1.0, short_side / min(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = frame.reformat(*size, format="rgb24", interpolation=Interpolation.AREA).to_ndarray().astype(np.uint8)
    turns = round(frame.rotation / 90)
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns % 4 else picture
