"""What curation reads from: a folder, a dataset's own listing (Panda-70M, InternVid, WebVid), WebDataset tars."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from xgenvideo.curate.listings import read_csv, read_jsonl
from xgenvideo.curate.pairs import Entry, read_entries, refuse_repeated
from xgenvideo.curate.places import videos_at
from xgenvideo.curate.tars import read_tars
from xgenvideo.errors import DataError


@dataclass(frozen=True)
class Preset:
    """A published subset: clips whose `score` is over `over` or in the best `top_share`, so many a video at most."""

    score: str
    over: float = -math.inf
    top_share: float = 1.0
    clips_a_video: int | None = None


# Panda-70M's dataset page describes its 10M subset so; InternVid (arXiv 2307.06942) its FLT subset.
SUBSETS = {
    "panda-10m": Preset("matching_score", over=0.43, clips_a_video=3),
    "internvid-flt": Preset("umt_sim", top_share=0.3),
}


def read_source(
    source: Path, videos: Path | str | None, preset: str, unpacked: Path, linked: bool = False
) -> list[Entry]:
    """All inputs of a source in order. `videos`: where a listing's files are; `unpacked`: where tars' videos are put.

    `videos` is a local folder or one of an object store (s3://bucket/folder); `linked`: a video that is not in it has
    the URL that the listing gives.
    Raises DataError when the source itself cannot be read, or has none of the scores that the preset chooses by.
    """
    source = Path(source)
    tars = _tars(source)
    if videos is not None and (source.is_dir() or tars):
        raise DataError(f"{source}: is no listing, its videos are in it; leave --videos {videos} away")
    if tars:
        entries = list(refuse_repeated(read_tars(tars, unpacked)))
    elif source.is_file():
        reader = read_csv if source.suffix == ".csv" else read_jsonl
        entries = list(refuse_repeated(reader(source, videos_at(videos or source.parent, linked))))
    else:
        entries = read_entries(source)
    if not entries:
        raise DataError(f"{source}: has no pair in it")
    return list(choose(entries, SUBSETS[preset])) if preset else entries


def _tars(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".tar" else []
    return [] if (source / "pairs.jsonl").exists() else sorted(source.glob("*.tar"))


def choose(entries: list[Entry], preset: Preset) -> Iterator[Entry]:
    """The entries in order; those outside the subset carry a reason: no_score, low_score, clips_of_video."""
    usable = [entry for entry in entries if entry.reason is None]
    scores = sorted((entry.scores[preset.score] for entry in usable if preset.score in entry.scores), reverse=True)
    if not scores:
        raise DataError(f"no input has the score {preset.score!r} that the preset chooses by; leave the preset away")
    least = scores[max(1, math.ceil(preset.top_share * len(scores))) - 1]
    chosen = [e for e in usable if preset.score in e.scores and preset.over < e.scores[preset.score] >= least]
    best = _best_of_each_video(chosen, preset)
    passed = {id(entry) for entry in chosen}
    for entry in entries:
        if entry.reason is not None or id(entry) in best:
            yield entry
        elif preset.score not in entry.scores:
            yield replace(entry, reason="no_score", detail=f"has no {preset.score}", step="select")
        elif id(entry) not in passed:
            detail = f"{preset.score} {entry.scores[preset.score]:g}, the subset begins at {max(least, preset.over):g}"
            yield replace(entry, reason="low_score", detail=detail, step="select")
        else:
            detail = f"{preset.clips_a_video} clips of its video score higher"
            yield replace(entry, reason="clips_of_video", detail=detail, step="select")


def _best_of_each_video(chosen: Iterable[Entry], preset: Preset) -> set[int]:
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in chosen:
        assert entry.pair is not None, f"{entry.name} has no record"
        groups[entry.pair.source].append(entry)
    # Stable: of clips with one score the earlier stays.
    ranked = (sorted(group, key=lambda entry: -entry.scores[preset.score]) for group in groups.values())
    return {id(entry) for group in ranked for entry in group[: preset.clips_a_video]}
