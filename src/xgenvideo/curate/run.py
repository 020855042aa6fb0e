"""The journey of curation: read, decode, judge step by step, write. Run: `xgv curate FOLDER --out DATASET`.

Every score is stored as it is made, in DATASET.work beside the dataset: a killed run goes on, a finished one stays.
Decoders and models run in child processes, a unit of the input at a time (`units.py`).
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from xgenvideo.curate.clips import read_clip
from xgenvideo.curate.pairs import choose_split
from xgenvideo.curate.report import write_report
from xgenvideo.curate.settings import ASKED, CurateSettings
from xgenvideo.curate.sources import read_source
from xgenvideo.curate.splitting import scan_shots, split_shots
from xgenvideo.curate.stages import Item, Progress, Workplace, add_up
from xgenvideo.curate.steps import FUNNEL, OF_ALL, OF_CLIPS, OF_RECORDS, judge
from xgenvideo.curate.units import describe, run_units, write_whole
from xgenvideo.data.shards import publish_dataset
from xgenvideo.data.text import texts
from xgenvideo.data.tokenizer import train_tokenizer
from xgenvideo.errors import DataError
from xgenvideo.records import Pair, Sample

VERSION = 1
SLICE = 1000  # inputs
OUR_FILES = ("audit.jsonl", "report.html", "curation.json", "tokenizer.json")


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
    DataError for a folder that cannot be read or an `out` that holds something else, MissingExtra for a step whose
    package is not installed.
    """
    settings = settings or CurateSettings()
    source, out = Path(source), Path(out)
    folder = work_folder(out, work)
    entries = read_source(source, videos, settings.preset, folder / "unpacked", settings.download != "off")
    items = [Item(number, entry) for number, entry in enumerate(entries)]
    signature = _signature(items, settings)
    finished = _finished(out, signature)
    if finished is not None:
        return finished
    with Workplace(folder, settings, progress) as place:
        if settings.split_shots:
            with place.timed("shots"):
                scan_shots(entries, place)
            items = [Item(number, entry) for number, entry in enumerate(split_shots(entries, place))]
        del entries  # the items hold them, with captions masked
        judge(items, place, OF_RECORDS)
        run_units([item for item in items if item.kept], place)
        timings = place.seconds
    with Workplace(folder, settings, progress) as place:  # with what the units have stored
        _judge_clips(items, place)
        judge(items, place, OF_ALL)
        with place.timed("write"):
            _publish(items, place, out)
        add_up(timings, place.seconds)
        summary = _summary(items, settings, out, signature, timings)
        write_report(out / "report.html", items, summary.to_dict(), settings, place.read_clip)
    sizes = _sizes(items, place, out)
    record = summary.to_dict() | {"settings": settings.to_dict(), "work": str(folder), "bytes": sizes}
    write_whole(out / "curation.json", [json.dumps(record, indent=1)])
    return summary


def work_folder(out: Path, work: Path | None) -> Path:
    """Where scores and decoded clips of a dataset are kept."""
    return Path(work or out.absolute().with_name(out.name + ".work")).absolute()


def _judge_clips(items: list[Item], work: Workplace) -> None:
    """By the scores that the units have stored, few at a time: what was measured of a clip takes kilobytes."""
    for start in range(0, len(items), SLICE):
        some = [item for item in items[start : start + SLICE] if item.kept]
        judge(some, work, OF_CLIPS)
        for item in some:
            item.forget_measures()


def _publish(items: list[Item], work: Workplace, out: Path) -> None:
    """The dataset in one rename, then what stands beside it."""
    kept = [item for item in items if item.kept]
    if out.is_dir() and not (out / "dataset.json").exists():
        for name in OUR_FILES:  # of an earlier run that kept nothing
            (out / name).unlink(missing_ok=True)
    if kept:
        card = {"curation": VERSION, "settings": work.settings.to_dict(), "dropped": _reasons(items)}
        publish_dataset(out, _samples(kept, work), card)
        learned = [_pair(item) for item in kept if item.split == "train"]
        if learned:
            temporary = out / "tokenizer.json.part"
            train_tokenizer(texts(learned), work.settings.vocabulary).save(temporary)
            temporary.replace(out / "tokenizer.json")
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: holds something else, and nothing of the input was kept; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "audit.jsonl", (json.dumps(item.to_dict()) + "\n" for item in items))


def _samples(kept: Iterable[Item], work: Workplace) -> Iterator[Sample]:
    for number, item in enumerate(kept):
        work.report("write", number)
        pair = choose_split(_pair(item), work.settings.heldout_share)
        clip = read_clip(work.clip_path(str(item.content)))
        yield Sample(
            key=pair.key,
            jpegs=clip.jpegs,
            pts=tuple(round(float(second), 6) for second in clip.pts),
            caption=pair.caption,
            source=pair.source,
            questions=pair.questions,
            twin=pair.twin,
            split=str(pair.split),
            licence=pair.licence,
            lineage=item.lineage(),
        )


def _pair(item: Item) -> Pair:
    assert item.entry.pair is not None, f"{item.entry.name} was kept without a record"
    return item.entry.pair


def _reasons(items: list[Item]) -> dict[str, int]:
    return dict(sorted(Counter(item.reason for item in items if item.reason is not None).items()))


def _summary(
    items: list[Item], settings: CurateSettings, out: Path, signature: str, timings: dict[str, float]
) -> CurateSummary:
    kept = [item for item in items if item.kept]
    shares = Counter(str(item.split) for item in kept)
    return CurateSummary(
        out=out,
        pairs_in=len(items),
        pairs_kept=len(kept),
        pairs_failed=sum(item.failed for item in items),
        dropped=_reasons(items),
        splits=dict(sorted(shares.items())),
        funnel=_funnel(items, settings),
        signature=signature,
        timings={step: round(seconds, 2) for step, seconds in timings.items()},
    )


def _funnel(items: list[Item], settings: CurateSettings) -> dict[str, int]:
    """How many inputs are left after each step."""
    left, funnel = len(items), {"inputs": len(items)}
    far = any(item.entry.url is not None for item in items)
    lost = Counter(item.lost_at for item in items if not item.kept)
    for step in FUNNEL:
        if (step == "download" and not far) or (step in ASKED and not settings.runs(step)):
            continue
        left -= lost[step]
        funnel[step] = left
    return funnel


def _signature(items: list[Item], settings: CurateSettings) -> str:
    """Hash of the records, of the files' sizes and times, and of the settings."""
    return hashlib.sha256(f"{VERSION} {settings.signature()} {describe(items)}".encode()).hexdigest()


def _sizes(items: list[Item], work: Workplace, out: Path) -> dict[str, int]:
    """Bytes of the inputs' videos that lie here, of their decoded clips, and of the dataset's shards."""
    videos = {item.entry.path for item in items if item.entry.path is not None}
    clips = {work.clip_path(item.content) for item in items if item.content is not None}
    counted = {"videos": videos, "clips": clips, "shards": out.glob("*.tar")}
    return {name: sum(map(_size, paths)) for name, paths in counted.items()}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


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
