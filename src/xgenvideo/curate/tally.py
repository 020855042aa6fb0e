"""What became of all inputs, counted in one pass: the summary, the report and the planner read it."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xgenvideo.curate.inputs import Inputs, Item
from xgenvideo.curate.settings import ASKED, CurateSettings
from xgenvideo.curate.stages import Workplace
from xgenvideo.curate.steps import FUNNEL


@dataclass
class Tally:
    """How many inputs there are, were kept, could not be used; how many each reason, step and split has."""

    inputs: int = 0
    kept: int = 0
    failed: int = 0
    far: bool = False  # whether a video of any is elsewhere
    reasons: Counter[str] = field(default_factory=Counter)
    lost_at: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(items: Iterable[Item]) -> "Tally":
        """Count them."""
        tally = Tally()
        for item in items:
            tally.inputs += 1
            tally.far = tally.far or item.entry.url is not None
            drop = item.drop
            if drop is None:
                tally.kept += 1
                tally.splits[str(item.split)] += 1
            else:
                tally.failed += item.failed
                tally.reasons[str(drop.reason)] += 1
                tally.lost_at[drop.step] += 1
        return tally

    @property
    def dropped(self) -> dict[str, int]:
        """By reason, in the order of the alphabet."""
        return dict(sorted(self.reasons.items()))

    def funnel(self, settings: CurateSettings) -> dict[str, int]:
        """How many inputs are left after each step."""
        left, funnel = self.inputs, {"inputs": self.inputs}
        for step in FUNNEL:
            if (step == "download" and not self.far) or (step in ASKED and not settings.runs(step)):
                continue
            left -= self.lost_at[step]
            funnel[step] = left
        return funnel


def sizes_of(inputs: Inputs, work: Workplace) -> dict[str, int]:
    """Bytes of the inputs' videos that lie here, and of their decoded clips; a file of several inputs counts once."""
    videos, clips = _Files(), _Files()
    for item in inputs:
        if item.entry.path is not None:
            videos.add(item.entry.path)
        if item.content is not None:
            clips.add(work.clip_path(item.content))
    return {"videos": videos.bytes, "clips": clips.bytes}


class _Files:
    """Different files, 16 bytes each."""

    def __init__(self) -> None:
        self._names, self._sizes = array("Q"), array("q")

    def add(self, path: Path) -> None:
        """One more, or one that was added before."""
        name = hashlib.blake2b(str(path).encode("utf-8", "surrogateescape"), digest_size=8).digest()
        self._names.append(int.from_bytes(name, "little"))
        self._sizes.append(path.stat().st_size if path.is_file() else 0)

    @property
    def bytes(self) -> int:
        """Of all of them."""
        first = np.unique(np.array(self._names, np.uint64), return_index=True)[1]
        return int(np.array(self._sizes, np.int64)[first].sum())
