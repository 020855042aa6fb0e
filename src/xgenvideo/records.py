"""The records that travel between rooms: frozen, checked at birth, printing shapes instead of arrays."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgenvideo.errors import DataError


@dataclass(frozen=True)
class Question:
    """A question about a clip with its options; `answer` is the index of the right one."""

    text: str
    options: tuple[str, ...]
    answer: int
    kind: str

    def __post_init__(self) -> None:
        if not 0 <= self.answer < len(self.options):
            raise DataError(f"question {self.text!r}: answer {self.answer} is not one of {len(self.options)} options")

    def to_dict(self) -> dict[str, Any]:
        """The question as plain JSON values."""
        return {"text": self.text, "options": list(self.options), "answer": self.answer, "kind": self.kind}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Question":
        """Read what `to_dict` wrote. Raises DataError for a wrong shape."""
        try:
            return Question(
                str(values["text"]), tuple(map(str, values["options"])), int(values["answer"]), str(values["kind"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"not a question: {values!r} ({error})") from error


@dataclass(frozen=True, slots=True)
class Pair:
    """One video-text pair as curation receives it: a line of `pairs.jsonl`. `video` is relative to that file."""

    key: str
    video: str
    caption: str
    source: str
    questions: tuple[Question, ...] = ()
    twin: str | None = None
    licence: str = "unknown"
    split: str | None = None


@dataclass(frozen=True, repr=False)
class SampledVideo:
    """Frames of one video at target times. frames [F H W 3] uint8 RGB, pts [F] seconds, indices [F] frame numbers."""

    frames: NDArray[np.uint8]
    pts: NDArray[np.float64]
    indices: NDArray[np.int64]
    seconds: float

    def __post_init__(self) -> None:
        count = len(self.frames)
        if self.frames.ndim != 4 or self.frames.shape[-1] != 3 or self.frames.dtype != np.uint8:
            raise DataError(f"frames must be [F H W 3] uint8, not {self.frames.shape} {self.frames.dtype}")
        if len(self.pts) != count or len(self.indices) != count or count == 0:
            raise DataError(f"{count} frames, {len(self.pts)} timestamps, {len(self.indices)} indices")
        if np.any(np.diff(self.pts) < 0):
            raise DataError("timestamps go backwards")

    @property
    def effective_fps(self) -> float:
        """Frames a second that were really taken; 0 for a single frame."""
        span = float(self.pts[-1] - self.pts[0])
        return (len(self.pts) - 1) / span if span > 0 else 0.0

    def __repr__(self) -> str:
        return (
            f"SampledVideo(frames={list(self.frames.shape)}, seconds={self.seconds:.2f}, fps={self.effective_fps:.2f})"
        )


@dataclass(frozen=True, repr=False)
class Sample:
    """One curated training sample: JPEG frames with their times, text, and where it came from."""

    key: str
    jpegs: tuple[bytes, ...]
    pts: tuple[float, ...]
    caption: str
    source: str
    questions: tuple[Question, ...] = ()
    twin: str | None = None
    split: str = "train"
    licence: str = "unknown"
    lineage: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.jpegs or len(self.jpegs) != len(self.pts):
            raise DataError(f"sample {self.key}: {len(self.jpegs)} frames, {len(self.pts)} timestamps")
        if any(later < earlier for earlier, later in zip(self.pts, self.pts[1:], strict=False)):
            raise DataError(f"sample {self.key}: timestamps go backwards")

    def __repr__(self) -> str:
        return f"Sample({self.key}, frames={len(self.jpegs)}, seconds={self.pts[-1]:.1f}, caption={self.caption!r})"
