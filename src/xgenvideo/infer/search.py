"""Ranking the clips of a folder of videos for a text: windows and moments are embedded once and kept in an index."""

import hashlib
import io
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.data.decoders import Decoders
from xgenvideo.data.video import sample_windows
from xgenvideo.errors import ConfigError, DataError, MediaError
from xgenvideo.infer.embed import Vectors, embed_text
from xgenvideo.infer.moments import cut_moments
from xgenvideo.infer.release import Release, Sample, Window

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".flv", ".gif"})
VERSION = 3
OVERLAPPING = 40
SAVE_SECONDS = 60.0
Timed = tuple[float, float, Vectors]
Embed = Callable[[Path], Iterable[Timed]]


@dataclass(frozen=True)
class Hit:
    """One clip of a video: seconds from its start, and the cosine of its embedding with the text's."""

    video: Path
    start: float
    end: float
    score: float


@dataclass(frozen=True, repr=False)
class Index:
    """Embedded spans of a folder's videos. vectors [N E] of unit length, times [N 2] start and end, videos [N], which
    ascend. `failed`: videos that cannot be read, with their stamp and the reason code.
    """

    vectors: Vectors
    times: NDArray[np.float64]
    videos: NDArray[np.int64]
    names: tuple[str, ...]
    stamps: tuple[str, ...]
    failed: dict[str, tuple[str, str]]

    def __repr__(self) -> str:
        return f"Index(videos={len(self.names)}, windows={list(self.vectors.shape)}, failed={len(self.failed)})"


@dataclass(frozen=True)
class Embedded:
    """One video in the making of an index: its spans' vectors [N E] and times [N 2]."""

    stamp: str
    vectors: Vectors
    times: NDArray[np.float64]


def search(
    release: Release,
    folder: Path,
    text: str,
    top: int = 5,
    index: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Hit]:
    """The `top` clips of the videos below `folder` that fit `text` best, best first.

    Only videos that are new or changed since the last search are read, in a child process. The index is a file in the
    user's cache folder ($XDG_CACHE_HOME) or at `index`; a video that cannot be read is named to `say` with its reason
    code and left out. Raises ConfigError for an empty text, DataError for a folder without a readable video.
    """
    if not text.strip():
        raise ConfigError("text", text, "must say what to look for")
    if top < 1:
        raise ConfigError("top", top, "must be at least 1")
    folder = Path(folder)
    with Decoders(1) as decoders:
        found = refresh(release, folder, index, say, lambda video: read_spans(release, video, decoders.windows))
    if not len(found.vectors):
        raise DataError(f"{folder}: no video here that can be read ({len(found.failed)} failed)")
    return [
        Hit(folder / hit.video, hit.start, hit.end, hit.score) for hit in rank(found, embed_text(release, text), top)
    ]


def refresh(
    release: Release,
    folder: Path,
    index: Path | None,
    say: Callable[[str], None],
    embed: Embed,
    old: Index | None = None,
    show: Callable[[Index], None] = lambda index: None,
) -> Index:
    """The index of the folder as it is now, on disk too: removed videos have left it. `old` is what is in
    memory already; `show` is told of each that is written meanwhile. Raises DataError.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; name a folder with videos")
    place = index or index_path(release, folder)

    def save(made: Index) -> None:
        _write(place, release, made)
        show(made)

    return update(release, folder, old or _read(place, release), say, embed, save)


def rank(index: Index, vector: Vectors, top: int) -> list[Hit]:
    """The `top` spans nearest to a unit vector [E], exactly; the videos' paths count from the folder.

    Of spans of one video that overlap only the nearest is named.
    """
    scores = index.vectors @ vector
    # One span overlaps fewer than these: itself, two windows, the moments of a window.
    count = min(OVERLAPPING * top, len(scores))
    best = np.argpartition(-scores, count - 1)[:count] if count else np.zeros(0, np.int64)
    hits: list[Hit] = []
    for i in best[np.lexsort((best, -scores[best]))].tolist():
        hit = _hit(index, i, float(scores[i]))
        if not any(one.video == hit.video and one.start < hit.end and hit.start < one.end for one in hits):
            hits.append(hit)
            if len(hits) == top:
                break
    return hits


def _hit(index: Index, window: int, score: float) -> Hit:
    start, end = index.times[window].tolist()
    return Hit(Path(index.names[index.videos[window]]), start, end, score)


def embed_video(release: Release, video: Path, sample: Sample = sample_windows) -> Iterator[Timed]:
    """Start, end and unit vector [E] of each window. Times within a window start at 0, as in training's clips."""
    for window in release.windows(video, sample):
        vector = release.read_window(window)[1].float().cpu().numpy()
        yield *release.span(window), vector


def read_spans(release: Release, video: Path, sample: Sample) -> Iterator[Timed]:
    """`embed_spans` of a file."""
    return embed_spans(release, release.windows(video, sample))


def embed_spans(release: Release, windows: Iterable[Window]) -> Iterator[Timed]:
    """Start, end and unit vector [E] of each window and of each moment within: a window that shows several scenes fits
    the text of none of them.
    """
    ready: list[Timed] = []
    whole: set[tuple[float, float]] = set()

    def encoded() -> Iterator[tuple[Tensor, Tensor]]:
        for window in windows:
            _, vector, features = release.read_window(window)
            span = release.span(window)
            ready.append((*span, vector.float().cpu().numpy()))
            whole.add(span)
            yield features, window.pts

    for _, vectors, spans in cut_moments(release, encoded()):
        found = zip(spans, vectors.numpy(), strict=True)
        # A short video is one moment, and one window.
        ready += [(start, end, vector) for (start, end), vector in found if (start, end) not in whole]
        yield from ready
        ready.clear()
    yield from ready


def update(
    release: Release,
    folder: Path,
    old: Index | None,
    say: Callable[[str], None],
    embed: Embed,
    save: Callable[[Index], None] = lambda index: None,
) -> Index:
    """The index of the folder as it is now: what is unchanged is taken from `old`, the rest is read by `embed`.

    What was read is handed to `save` every SAVE_SECONDS and at the end, also when it is interrupted.
    """
    width = release.config.model.embedding
    found, failed, unread = _unchanged(folder, old)
    for name, (_, reason) in failed.items():
        say(f"{name}: left out, {reason}")
    saved = time.monotonic()
    try:
        for number, (name, stamp) in enumerate(unread):
            try:
                rows = list(embed(folder / name))
            except MediaError as error:
                failed[name] = stamp, error.reason
                say(f"{name}: left out, {error.reason}")
                continue
            times = np.array([row[:2] for row in rows], np.float64)
            found[name] = Embedded(stamp, np.stack([row[2] for row in rows]), times)
            if time.monotonic() - saved > SAVE_SECONDS:
                save(_index(found, failed, width))
                saved = time.monotonic()
                say(f"{number + 1} of {len(unread)} videos read")
    finally:
        index = _index(found, failed, width)
        if unread or old is None or (old.names, old.failed) != (index.names, index.failed):
            save(index)
    return index


def _unchanged(
    folder: Path, old: Index | None
) -> tuple[dict[str, Embedded], dict[str, tuple[str, str]], list[tuple[str, str]]]:
    """The folder's videos: those embedded already, those known to be broken, and the rest with their stamps."""
    numbers = {} if old is None else {pair: i for i, pair in enumerate(zip(old.names, old.stamps, strict=True))}
    found: dict[str, Embedded] = {}
    failed: dict[str, tuple[str, str]] = {}
    unread: list[tuple[str, str]] = []
    for path in find_videos(folder):
        try:
            name, stamp = path.relative_to(folder).as_posix(), stamp_of(path)
        except OSError:  # it went away since it was listed
            continue
        if old is not None and (name, stamp) in numbers:
            number = numbers[name, stamp]
            first, last = np.searchsorted(old.videos, [number, number + 1])
            found[name] = Embedded(stamp, old.vectors[first:last], old.times[first:last])
        elif old is not None and old.failed.get(name, ("", ""))[0] == stamp:
            failed[name] = old.failed[name]
        else:
            unread.append((name, stamp))
    return found, failed, unread


def _index(found: dict[str, Embedded], failed: dict[str, tuple[str, str]], width: int) -> Index:
    """Videos in the order of their names."""
    names = sorted(found)
    videos = [found[name] for name in names]
    return Index(
        np.concatenate([np.zeros((0, width), np.float32), *(one.vectors for one in videos)]),
        np.concatenate([np.zeros((0, 2)), *(one.times for one in videos)]),
        np.repeat(np.arange(len(videos)), [len(one.vectors) for one in videos]),
        tuple(names),
        tuple(one.stamp for one in videos),
        dict(failed),
    )


def find_videos(folder: Path) -> list[Path]:
    """Files below `folder` that are named as videos; links out of the folder are not followed."""
    root = folder.resolve()
    named = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in named if path.is_file() and path.resolve().is_relative_to(root))


def stamp_of(path: Path) -> str:
    """Size and time of change: another stamp means that the video is read again."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def index_path(release: Release, folder: Path) -> Path:
    """Where the index of this release for this folder is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(f"{release.identity}\n{folder.resolve()}".encode("utf-8", "surrogateescape")).hexdigest()
    return cache / "xgenvideo" / "search" / f"{name[:32]}.npz"


def _write(path: Path, release: Release, index: Index) -> None:
    """One .npz of plain arrays, to a temporary name, then renamed. Raises DataError where it cannot be written."""
    about = {"version": VERSION, "identity": release.identity, "names": index.names, "stamps": index.stamps}
    about["failed"] = index.failed
    content = io.BytesIO()
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    np.savez(content, about=text, vectors=index.vectors, times=index.times, videos=index.videos)
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: the search index cannot be written ({error}); set XDG_CACHE_HOME") from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, release: Release) -> Index | None:
    """The index of this release at `path`; None where there is none that can be read, as it is made again."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            about: dict[str, Any] = json.loads(arrays["about"].tobytes())
            vectors, times, videos = arrays["vectors"], arrays["times"], arrays["videos"]
        if (about["version"], about["identity"]) != (VERSION, release.identity):
            return None
        fits = vectors.shape == (len(times), release.config.model.embedding) and times.shape == (len(videos), 2)
        failed = {str(name): (str(stamp), str(reason)) for name, (stamp, reason) in about["failed"].items()}
        return Index(vectors, times, videos, tuple(about["names"]), tuple(about["stamps"]), failed) if fits else None
    except (OSError, ValueError, KeyError, EOFError, AttributeError, TypeError):
        return None
