"""Adjacent clips of one source as one sample, so that short clips fill the frames of the model: `data.stitch=true`.

Which clips belong together is a pure function of the manifest, `data.frames` and `data.fps`.
"""

from array import array
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.data.batch import Example
from xgenvideo.data.dataset import BETWEEN_KEYS, Dataset, Row
from xgenvideo.data.examples import read_example
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.text import PackedText
from xgenvideo.records import Question


@dataclass(frozen=True)
class Stitches:
    """Sample g of a split is its clips `clips[bounds[g] : bounds[g + 1]]` by time, `frames[g]` frames in all."""

    clips: NDArray[np.int64]
    bounds: NDArray[np.int64]
    frames: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.frames)

    def of(self, number: int) -> NDArray[np.int64]:
        """The clips of a sample."""
        return self.clips[self.bounds[number] : self.bounds[number + 1]]


@dataclass(frozen=True)
class Stitched:
    """Adjacent clips of one source, read as one; it stands where a Row does.

    `spans`: start and end of each in seconds, from the first one's start on.
    """

    rows: tuple[Row, ...]
    spans: tuple[tuple[float, float], ...]

    @property
    def key(self) -> str:
        """The keys of all clips."""
        return BETWEEN_KEYS.join(row.key for row in self.rows)

    @property
    def frames(self) -> int:
        """Frames in all."""
        return sum(row.frames for row in self.rows)

    @cached_property
    def pts(self) -> tuple[float, ...]:
        """Times of all frames in the source, from the first clip's start on."""
        return tuple(start + pts for row, (start, _) in zip(self.rows, self.spans, strict=True) for pts in row.pts)

    @cached_property
    def caption(self) -> str:
        """The captions, each behind its times."""
        named = zip(self.rows, self.spans, strict=True)
        return " ".join(f"{_times(span)} {row.caption.strip()}" for row, span in named)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """The questions of all clips, each behind the times that it is about."""
        return tuple(
            replace(question, text=f"{_times(span)} {question.text}")
            for row, span in zip(self.rows, self.spans, strict=True)
            for question in row.questions
        )

    @property
    def source(self) -> str:
        """Where all clips are from."""
        return self.rows[0].source

    @property
    def licence(self) -> str:
        """The licence of the clips; all of them where they differ."""
        return "; ".join(dict.fromkeys(row.licence for row in self.rows))


def stitches_of(places: NDArray[Any], frames: int, fps: float) -> Stitches:
    """Put clips of one source that follow each other into samples of at most `frames` frames, greedily from its start.

    `places`: as `Dataset.places` gives them. A clip follows another if it starts when that one ends, or less than one
    sampling interval later. A clip without times, or with more frames than that, stays alone. O(N log N) time, 24 bytes
    a clip.
    """
    clips = np.lexsort((places["start"], places["source"]))
    source, start, end = (places[name][clips] for name in ("source", "start", "end"))
    gap = np.round(start[1:] - end[:-1], 3)  # published times have milliseconds
    joined = (source[1:] == source[:-1]) & (gap >= 0) & (gap < 1 / fps)
    count = np.arange(len(clips))
    breaks = np.append(np.flatnonzero(~joined) + 1, len(clips))
    run_end = breaks[np.searchsorted(breaks, count, side="right")]
    total = np.concatenate([[0], np.cumsum(places["frames"][clips])])
    fitting = np.searchsorted(total, total[:-1] + frames, side="right") - 1
    following = np.minimum(run_end, np.maximum(fitting, count + 1))
    bounds, at = array("q", [0]), 0
    while at < len(clips):
        at = int(following[at])
        bounds.append(at)
    cuts = np.array(bounds, dtype=np.int64)
    return Stitches(clips, cuts, np.diff(total[cuts]))


def stitch(rows: list[Row], places: NDArray[Any]) -> Row | Stitched:
    """Rows of adjacent clips and their places as one sample; a single row as it is."""
    if len(rows) == 1:
        return rows[0]
    first = float(places["start"][0])
    spans = zip((places["start"] - first).tolist(), (places["end"] - first).tolist(), strict=True)
    return Stitched(tuple(rows), tuple(spans))


def read_stitched(
    dataset: Dataset,
    sample: Stitched,
    text: PackedText,
    config: RunConfig,
    cache: FeatureCache | None = None,
    room: Tensor | None = None,
) -> Example:
    """As `read_example`, for all frames of a stitched sample."""
    count, at = sample.frames, 0
    if room is not None and len(room) < count:
        room = None
    parts = []
    for row in sample.rows:
        part_room = None if room is None else room[at : at + row.frames]
        parts.append(read_example(dataset, row, text, config, cache, room=part_room))
        at += row.frames
    pts = torch.tensor(sample.pts, dtype=torch.float32)
    video = torch.cat([part.video for part in parts]) if room is None else room[:count]
    if cache is not None:
        return Example(sample.key, text, pts, features=video)
    return Example(sample.key, text, pts, frames=video)


def _times(span: tuple[float, float]) -> str:
    return f"[{span[0]:.1f}-{span[1]:.1f} s]"
