"""A part of a curation, for many machines that share a file system: `xgv curate SOURCE --out DATASET --part 3/64`.

Every part reads the whole listing, so that all agree on the units, and works on its own units alone; what it stores has
file names of its own. The run without a part then finds all of them finished, judges, selects and publishes.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xgenvideo.curate.run import work_folder
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.sources import read_source
from xgenvideo.curate.splitting import not_scanned, scan_shots, split_shots
from xgenvideo.curate.stages import Item, Progress, Workplace
from xgenvideo.curate.steps import OF_RECORDS, judge
from xgenvideo.curate.units import Part, run_units


@dataclass(frozen=True)
class PartSummary:
    """What a part has: `units` of its own, with so many `pairs`, `crashed` of them.

    `scans_left`: inputs that other parts have not looked through for shots. Until they have, no part knows the clips:
    with any left, it has no units yet, and is to be run again.
    """

    part: str
    units: int
    pairs: int
    crashed: int
    scans_left: int = 0

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
    once at a time.
    """
    settings = settings or CurateSettings()
    folder, name = work_folder(Path(out), work), f"{part.number}/{part.count}"
    entries = read_source(Path(source), videos, settings.preset, folder / "unpacked", settings.download != "off")
    with Workplace(folder, settings, progress, part.suffix) as place:
        if settings.split_shots:
            for some in part.of(entries, settings.unit_pairs):
                scan_shots(some, place)
    with Workplace(folder, settings, progress, part.suffix) as place:  # with what other parts have stored
        if settings.split_shots:
            left = not_scanned(entries, place)
            if left:
                return PartSummary(name, 0, 0, 0, left)
            entries = list(split_shots(entries, place))
        items = [Item(number, entry) for number, entry in enumerate(entries)]
        judge(items, place, OF_RECORDS)
        kept = [item for item in items if item.kept]
        units = run_units(kept, place, part)
    own = [item for unit in part.of(kept, settings.unit_pairs) for item in unit]
    return PartSummary(name, units, len(own), sum(item.failed for item in own))
