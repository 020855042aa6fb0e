"""What is kept of a video that was watched: latents, embeddings, times and small pictures, never the video itself."""

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from xgenvideo.errors import ConfigError
from xgenvideo.infer.embed import Vectors
from xgenvideo.infer.moments import cut_moments
from xgenvideo.infer.release import Release, Window
from xgenvideo.records import SampledVideo

PICTURES = 240
# Beyond, an answer is traced to windows: moments have sixteen times the latents.
MOMENT_SECONDS = 600.0
PICTURE_SIDE = 96
JPEG_QUALITY = 70


@dataclass(frozen=True, repr=False)
class Seen:
    """A watched video. latents [W Q Dr], vectors [W E] and spans in seconds of its windows; those of the shorter pieces
    [M Q Dr] that an answer is traced to: moments, or windows where the video is long. `pictures` are (seconds, JPEG),
    every `every`-th of the `sampled` frames.
    """

    latents: Tensor
    vectors: Vectors
    spans: tuple[tuple[float, float], ...]
    pieces: Tensor
    piece_spans: tuple[tuple[float, float], ...]
    seconds: float
    sampled: int
    pictures: tuple[tuple[float, bytes], ...] = ()
    every: int = 1

    @property
    def together(self) -> Tensor:
        """Latents [1 W*Q Dr], as the decoder reads them."""
        return self.latents.flatten(0, 1)[None]

    def part(self, start: float, end: float) -> "Seen":
        """The one piece that fits a span of seconds best, as if it were all of the video. Raises ConfigError."""

        def fit(span: tuple[float, float]) -> float:
            shared = min(end, span[1]) - max(start, span[0])
            return shared / (max(end, span[1]) - min(start, span[0]))

        best = max(range(len(self.piece_spans)), key=lambda i: fit(self.piece_spans[i]))
        if not start < end or fit(self.piece_spans[best]) <= 0:
            raise ConfigError("span", [start, end], f"must be a start and an end within the {self.seconds:.1f} s")
        piece, span = self.pieces[best : best + 1], (self.piece_spans[best],)
        return replace(self, latents=piece, spans=span, pieces=piece, piece_spans=span)

    @property
    def vector(self) -> Vectors:
        """One unit vector [E] for the whole video: the mean of its windows', made a unit again."""
        mean = self.vectors.mean(axis=0)
        whole: Vectors = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return whole

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        pictures = sum(len(jpeg) for _, jpeg in self.pictures)
        return self.latents.nbytes + self.pieces.nbytes + self.vectors.nbytes + pictures


def watch(
    release: Release, windows: Iterator[SampledVideo], turn: AbstractContextManager[object], pictures: bool = False
) -> Seen:
    """Read the windows of a video, one at a time; the model is used only while `turn` is held."""
    latents, vectors, spans = [], [], []
    strip, sampled, seconds = Strip(), 0, 0.0

    def encoded() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal sampled, seconds
        for number, taken in enumerate(windows):
            window = release.window(number, taken)
            with turn:
                found, vector, features = release.read_window(window)
                latents.append(found)
                vectors.append(vector.float().cpu().numpy())
                spans.append(release.span(window))
                sampled, seconds = sampled + len(taken.pts), taken.seconds
                if pictures:
                    strip.add(taken)
                # What is left of a moment with the window before is read while it is still our turn.
                if seconds <= MOMENT_SECONDS:
                    yield features, window.pts

    parts = list(cut_moments(release, encoded()))
    together, pieces = torch.cat(latents), tuple(span for _, _, some in parts for span in some)
    return Seen(
        together,
        np.stack(vectors),
        tuple(spans),
        torch.cat([part[0] for part in parts]) if parts else together,
        pieces or tuple(spans),
        seconds,
        sampled,
        tuple(strip.pictures),
        strip.every,
    )


def in_turn(windows: Iterator[Window], turn: AbstractContextManager[object]) -> Iterator[Window]:
    """The windows; `turn` is held while whoever asked is at work with one, not while the next is waited for."""
    for window in windows:
        with turn:
            yield window


class Strip:
    """At most PICTURES small pictures of a video of any length: when there are too many, every second one goes."""

    def __init__(self) -> None:
        self.pictures: list[tuple[float, bytes]] = []
        self.every, self._count = 1, 0

    def add(self, taken: SampledVideo) -> None:
        """Keep small pictures of a window's frames."""
        for frame, seconds in zip(taken.frames, taken.pts.tolist(), strict=True):
            if self._count % self.every == 0:
                self.pictures.append((seconds, _jpeg(frame)))
            self._count += 1
            if len(self.pictures) > PICTURES:
                self.pictures, self.every = self.pictures[::2], self.every * 2


def _jpeg(frame: np.ndarray) -> bytes:
    height, width = frame.shape[:2]
    scale = min(1.0, PICTURE_SIDE / min(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(frame[:, :, ::-1], size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()


@dataclass(frozen=True, repr=False)
class File:
    """An upload: what it was called, how large it was, when it came, and what was seen."""

    id: str
    name: str
    size: int
    created: int
    seen: Seen


class Library:
    """Watched uploads by id, a bounded number and size of them; the one not used for longest goes first.

    Ids cannot be guessed: whoever has one was given it.
    """

    def __init__(self, most: int, most_mb: float) -> None:
        self._files: OrderedDict[str, File] = OrderedDict()
        self._most, self._most_bytes = most, most_mb * 1e6

    def __len__(self) -> int:
        return len(self._files)

    def add(self, name: str, size: int, seen: Seen) -> File:
        """Keep one. The newest stays even if it alone is too large: its uploader is about to ask."""
        file = File(f"file-{secrets.token_hex(16)}", name, size, int(time.time()), seen)
        self._files[file.id] = file
        while len(self._files) > 1 and (
            len(self._files) > self._most or sum(one.seen.bytes for one in self._files.values()) > self._most_bytes
        ):
            self._files.popitem(last=False)
        return file

    def find(self, identity: str) -> File | None:
        """The upload of that id, which now counts as used."""
        if identity in self._files:
            self._files.move_to_end(identity)
        return self._files.get(identity)

    def forget(self, identity: str) -> bool:
        """Remove one; whether it was there."""
        return self._files.pop(identity, None) is not None
