"""A part of a curation, for many machines that share a file system: `xgv curate SOURCE --out DATASET --part 3/64`.

Every part reads the whole listing, so that all agree on the slices, and works on its own slices alone; what it stores
has file names of its own. The run without a part then finds all of them finished, judges, selects and publishes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xgenvideo.curate.inputs import Part
from xgenvideo.curate.run import work_folder
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.sources import hold_inputs
from xgenvideo.curate.stages import Progress, Workplace
from xgenvideo.curate.units import run_units


@dataclass(frozen=True)
class PartSummary:
    """What a part has: `units` of its own, with so many `pairs`, `crashed` of them."""

    part: str
    units: int
    pairs: int
    crashed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def curate_part(
    source: Path,
    out: Path,
    part: Part,
    settings: CurateSettings | None = None,
    progress: Progress | None = None,
    videos: Path | str | None = None,
    work: Path | None = None,
) -> PartSummary:
    """Decode and score the units of one part of `source`; arguments and errors as `curate` has them.

    Nothing is written to `out`. A part that was killed goes on, one that is finished has nothing to do. A part may run
    once at a time, which DataError tells.
    """
    settings = settings or CurateSettings()
    folder = work_folder(Path(out), work)
    with (
        hold_inputs(Path(source), videos, settings, folder, part) as (inputs, _),
        Workplace(folder, settings, progress, part.suffix) as place,
    ):
        worked = run_units(inputs, place)
    return PartSummary(f"{part.number}/{part.count}", worked.units, worked.pairs, worked.crashed)
