"""The journey of curation: read, decode, judge step by step, write. Run: `xgv curate FOLDER --out DATASET`.

Every score is stored as it is made, in DATASET.work beside the dataset: a killed run goes on, a finished one stays.
Decoders and models run in child processes, a unit of the input at a time (`units.py`).
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xgenvideo.curate.inputs import Inputs, batches
from xgenvideo.curate.report import write_report
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.sources import hold_inputs
from xgenvideo.curate.stages import Progress, Workplace, add_up
from xgenvideo.curate.steps import OF_CLIPS, judge, judge_all
from xgenvideo.curate.tally import Tally, sizes_of
from xgenvideo.curate.units import run_units, write_whole
from xgenvideo.curate.write import FORMAT, write_out
from xgenvideo.errors import DataError

SLICE = 1000  # inputs


@dataclass(frozen=True)
class CurateSummary:
    """What curation did. `dropped` counts every reason code; `pairs_failed` of them could not be read or decoded.

    `timings`: processor seconds of each step, over all processes and earlier runs that made what was used.
    """

    out: Path
    pairs_in: int
    pairs_kept: int
    pairs_failed: int
    dropped: dict[str, int]
    splits: dict[str, int]
    funnel: dict[str, int]
    signature: str = field(repr=False)
    timings: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        total = self.pairs_kept + sum(self.dropped.values())
        assert total == self.pairs_in, f"{self.pairs_in} inputs, but {total} outcomes"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"out": str(self.out)}


def curate(
    source: Path,
    out: Path,
    settings: CurateSettings | None = None,
    progress: Progress | None = None,
    videos: Path | str | None = None,
    work: Path | None = None,
) -> CurateSummary:
    """Turn the raw folder or listing `source` into the dataset `out`, with audit.jsonl, report.html and tokenizer.json.

    `videos` is the folder that a listing's videos lie in, or its URL in an object store; by default the listing's own.
    `work` keeps scores and decoded clips, by default `OUT.work`: given that of an earlier run, other thresholds are
    applied without decoding again.
    Every input ends as kept or with one reason code. `progress(stage, done, total)` is called as it goes. Raises
    DataError for a folder that cannot be read, an `out` that holds something else, or a `work` that another run has,
    MissingExtra for a step whose package is not installed.
    """
    settings = settings or CurateSettings()
    source, out = Path(source), Path(out)
    folder = work_folder(out, work)
    with hold_inputs(source, videos, settings, folder) as (inputs, described):
        signature = hashlib.sha256(f"{FORMAT} {settings.signature()} {described}".encode()).hexdigest()
        finished = _finished(out, signature)
        if finished is not None:
            return finished
        with Workplace(folder, settings, progress) as place:
            run_units(inputs, place)
            timings = place.seconds
        with Workplace(folder, settings, progress) as place:  # with what the units have stored
            _judge_clips(inputs, place)
            judge_all(inputs, place)
            tally = Tally.of(inputs)
            with place.timed("write"):
                write_out(inputs, tally, place, out)
            add_up(timings, place.seconds)
            summary = _summary(tally, settings, out, signature, timings)
            write_report(out / "report.html", inputs, summary.to_dict(), settings, place.read_clip)
            sizes = sizes_of(inputs, place)
    sizes["shards"] = sum(path.stat().st_size for path in out.glob("*.tar"))
    record = summary.to_dict() | {"settings": settings.to_dict(), "work": str(folder), "bytes": sizes}
    write_whole(out / "curation.json", [json.dumps(record, indent=1)])
    return summary


def work_folder(out: Path, work: Path | None) -> Path:
    """Where scores and decoded clips of a dataset are kept."""
    return Path(work or out.absolute().with_name(out.name + ".work")).absolute()


def _judge_clips(inputs: Inputs, work: Workplace) -> None:
    """By the scores that the units have stored, few at a time: what was measured of a clip takes kilobytes."""
    for some in inputs.change():
        for few in batches((item for item in some if item.kept), SLICE):
            judge(few, work, OF_CLIPS)
            for item in few:
                item.forget_measures()


def _summary(
    tally: Tally, settings: CurateSettings, out: Path, signature: str, timings: dict[str, float]
) -> CurateSummary:
    return CurateSummary(
        out=out,
        pairs_in=tally.inputs,
        pairs_kept=tally.kept,
        pairs_failed=tally.failed,
        dropped=tally.dropped,
        splits=dict(sorted(tally.splits.items())),
        funnel=tally.funnel(settings),
        signature=signature,
        timings={step: round(seconds, 2) for step, seconds in timings.items()},
    )


def _finished(out: Path, signature: str) -> CurateSummary | None:
    """The summary of an earlier run of the same thing; refuses a folder where another one was curated."""
    record = out / "curation.json"
    if not record.exists():
        return None
    values = json.loads(record.read_text(encoding="utf-8"))
    if values["signature"] != signature:
        if (out / "dataset.json").exists():
            raise DataError(f"{out}: was curated from another input or with other settings; give a new folder")
        return None
    values.pop("settings")
    for name in ("work", "bytes"):
        values.pop(name, None)
    return CurateSummary(**(values | {"out": out}))
