"""Ranking the clips of a folder of videos for a text: every window is embedded once and kept in an index."""

import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xgenvideo.data.text import caption_document, pack_documents
from xgenvideo.errors import ConfigError, DataError, MediaError
from xgenvideo.infer.release import Release

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".ogv", ".flv", ".gif"})
VERSION = 1
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """One clip of a video: seconds from its start, and the cosine of its embedding with the text's."""

    video: Path
    start: float
    end: float
    score: float


@dataclass(frozen=True, repr=False)
class Index:
    """Embedded windows of a folder's videos. vectors [N E] of unit length, times [N 2] start and end, videos [N]."""

    vectors: Vectors
    times: NDArray[np.float64]
    videos: NDArray[np.int64]
    names: tuple[str, ...]
    stamps: tuple[str, ...]
    failed: dict[str, str]

    def __repr__(self) -> str:
        return f"Index(videos={len(self.names)}, windows={list(self.vectors.shape)}, failed={len(self.failed)})"


def search(
    release: Release,
    folder: Path,
    text: str,
    top: int = 5,
    index: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Hit]:
    """The `top` windows of the videos below `folder` that fit `text` best, best first.

    Only videos that are new or changed since the last search are read. The index is a file in the user's cache folder
    ($XDG_CACHE_HOME) or at `index`; a video that cannot be read is named to `say` with its reason code and left out.
    Raises ConfigError for an empty text, DataError for a folder without a readable video.
    """
    if not text.strip():
        raise ConfigError("text", text, "must say what to look for")
    if top < 1:
        raise ConfigError("top", top, "must be at least 1")
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; name a folder with videos")
    place = index or index_path(release, folder)
    found = update(release, folder, _read(place, release), say)
    _write(place, release, found)
    if not len(found.vectors):
        raise DataError(
            f"{folder}: no video here can be read ({len(found.failed)} failed); looked for {sorted(SUFFIXES)}"
        )
    scores = found.vectors @ embed_text(release, text)
    best = np.argsort(-scores, kind="stable")[:top]
    return [_hit(found, folder, int(i), float(scores[i])) for i in best]


def _hit(index: Index, folder: Path, window: int, score: float) -> Hit:
    start, end = index.times[window].tolist()
    return Hit(folder / index.names[index.videos[window]], start, end, score)


@torch.inference_mode()
def embed_text(release: Release, text: str) -> Vectors:
    """Unit vector [E] of a text, embedded as captions are."""
    document = caption_document(text, release.tokenizer, release.config.data.text_tokens)
    packed = pack_documents([document], len(document.ids), len(document.ids) - 2, 0)
    device = release.model.logit_scale.device
    tokens, positions, numbers = (
        torch.from_numpy(part)[None].to(device) for part in (packed.tokens, packed.positions, packed.documents)
    )
    end = torch.tensor([packed.caption_end], device=device)
    found: Vectors = release.model.text_embedding(tokens, positions, numbers, end)[0].float().cpu().numpy()
    return found


@torch.inference_mode()
def embed_video(release: Release, video: Path) -> Iterator[tuple[float, float, Vectors]]:
    """Start, end and unit vector [E] of each window. Times within a window start at 0, as in training's clips."""
    step = 1 / release.config.data.fps
    for window in release.windows(video):
        latents = release.window_latents(window, from_start=False)
        vector = release.model.video_embedding(latents)[0].float().cpu().numpy()
        yield float(window.pts[0]), float(window.pts[-1]) + step, vector


def update(release: Release, folder: Path, old: Index | None, say: Callable[[str], None]) -> Index:
    """The index of the folder as it is now: what is unchanged is taken from `old`."""
    known = (
        {}
        if old is None
        else {(name, stamp): i for i, (name, stamp) in enumerate(zip(old.names, old.stamps, strict=True))}
    )
    names: list[str] = []
    stamps: list[str] = []
    failed: dict[str, str] = {}
    vectors: list[Vectors] = []
    times: list[tuple[float, float]] = []
    videos: list[int] = []
    for path in find_videos(folder):
        name, stamp = path.relative_to(folder).as_posix(), stamp_of(path)
        try:
            rows = _kept(old, known[name, stamp]) if (name, stamp) in known else list(embed_video(release, path))
        except MediaError as error:
            failed[name] = error.reason
            say(f"{name}: left out, {error.reason}")
            continue
        for start, end, vector in rows:
            vectors.append(vector)
            times.append((start, end))
            videos.append(len(names))
        names.append(name)
        stamps.append(stamp)
    width = release.config.model.embedding
    return Index(
        np.stack(vectors) if vectors else np.zeros((0, width), dtype=np.float32),
        np.array(times, dtype=np.float64).reshape(-1, 2),
        np.array(videos, dtype=np.int64),
        tuple(names),
        tuple(stamps),
        failed,
    )


def _kept(old: Index | None, number: int) -> list[tuple[float, float, Vectors]]:
    assert old is not None, "known entries come from an index"
    chosen = np.flatnonzero(old.videos == number)
    return [(float(old.times[i, 0]), float(old.times[i, 1]), old.vectors[i]) for i in chosen]


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
        return Index(vectors, times, videos, tuple(about["names"]), tuple(about["stamps"]), {}) if fits else None
    except (OSError, ValueError, KeyError, EOFError):
        return None
