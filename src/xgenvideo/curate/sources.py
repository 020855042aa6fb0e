"""What curation reads from: a folder, a dataset's own listing (Panda-70M, InternVid, WebVid), WebDataset tars."""

import errno
import fcntl
import math
import shutil
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xgenvideo.curate.inputs import WHOLE, Description, Inputs, Item, Part
from xgenvideo.curate.listings import read_csv, read_jsonl
from xgenvideo.curate.pairs import Entry, read_entries
from xgenvideo.curate.places import videos_at
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.tars import read_tars
from xgenvideo.data.keys import Keys, digest
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


@contextmanager
def hold_inputs(
    source: Path, videos: Path | str | None, settings: CurateSettings, work: Path, part: Part = WHOLE
) -> Iterator[tuple[Inputs, str]]:
    """As `read_inputs`, for one process at a time; the inputs' files go at the end, also when they cannot be read.

    Raises DataError while another process has them: it would find its slices exchanged for ours.
    """
    work.mkdir(parents=True, exist_ok=True)
    name = f"inputs{part.suffix}"
    with (work / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it, however the process ends
        except BlockingIOError as error:
            raise DataError(
                f"{work / name}: another curation is at work there; wait for its end, or give another folder by --work"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system without locks
                raise
        try:
            yield read_inputs(source, videos, settings, work, part)
        finally:
            shutil.rmtree(work / name, ignore_errors=True)


def read_inputs(
    source: Path, videos: Path | str | None, settings: CurateSettings, work: Path, part: Part = WHOLE
) -> tuple[Inputs, str]:
    """The inputs of a source, chosen by the settings' preset, in `work`; and the SHA-256 of all that was read.

    A part's is of nothing: it costs a look at every file of the listing. Raises DataError when the source itself
    cannot be read, or has none of the scores that the preset chooses by.
    """
    selection = Selection(SUBSETS[settings.preset] if settings.preset else None)
    description = Description()

    def seen() -> Iterator[Entry]:
        for entry in read_source(source, videos, work / "unpacked", settings.download != "off"):
            selection.see(entry)
            if part == WHOLE:
                description.add(entry)
            yield entry

    inputs = Inputs.write(work / f"inputs{part.suffix}", seen(), settings.unit_pairs, part)
    if not len(inputs):
        raise DataError(f"{source}: has no pair in it")
    if selection.choose():
        for some in inputs.change():
            some[:] = map(selection.apply, some)
    return inputs, description.sha256


def read_source(source: Path, videos: Path | str | None, unpacked: Path, linked: bool = False) -> Iterable[Entry]:
    """All inputs of a source in order. `videos`: where a listing's files are; `unpacked`: where tars' videos are put.

    `videos` is a local folder or one of an object store (s3://bucket/folder); `linked`: a video that is not in it has
    the URL that the listing gives. Raises DataError when the source itself cannot be read.
    """
    source = Path(source)
    tars = _tars(source)
    if videos is not None and (source.is_dir() or tars):
        raise DataError(f"{source}: is no listing, its videos are in it; leave --videos {videos} away")
    if tars:
        return read_tars(tars, unpacked)
    if source.is_file():
        reader = read_csv if source.suffix == ".csv" else read_jsonl
        return reader(source, videos_at(videos or source.parent, linked))
    return read_entries(source)


def _tars(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix == ".tar" else []
    return [] if (source / "pairs.jsonl").exists() else sorted(source.glob("*.tar"))


class Selection:
    """What can be said of inputs only when all have been seen: whose key came before, and which a preset chooses.

    Holds 16 bytes an input, with a preset 32.
    """

    def __init__(self, preset: Preset | None) -> None:
        self._preset = preset
        self._keys, self._scores, self._sources = Keys(), array("d"), array("Q")
        self._repeated: frozenset[int] = frozenset()
        self._least = -math.inf
        self._best: NDArray[np.bool_] | None = None

    def see(self, entry: Entry) -> None:
        """The next of the inputs."""
        self._keys.add(entry.pair.key if entry.pair is not None else None)
        if self._preset is not None:
            self._scores.append(entry.scores.get(self._preset.score, math.nan) if entry.pair is not None else math.nan)
            source = digest(entry.pair.source, 8) if entry.pair is not None else bytes(8)
            self._sources.append(int.from_bytes(source, "little"))

    def choose(self) -> bool:
        """All have been seen; whether `apply` has anything to say. Raises DataError where a preset has no score."""
        self._repeated, self._keys = self._keys.repeated(), Keys()
        if self._preset is not None:
            scores = np.array(self._scores)
            scores[list(self._repeated)] = math.nan
            self._best = self._choose(scores, np.array(self._sources, np.uint64))
        return bool(self._repeated) or self._best is not None

    def _choose(self, scores: NDArray[np.float64], sources: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which inputs the preset chooses."""
        preset = self._preset
        assert preset is not None, "there is no preset"
        known = np.flatnonzero(~np.isnan(scores))
        if not len(known):
            raise DataError(
                f"no input has the score {preset.score!r} that the preset chooses by; leave the preset away"
            )
        self._least = float(np.sort(scores[known])[-max(1, math.ceil(preset.top_share * len(known)))])
        chosen = known[(scores[known] > preset.over) & (scores[known] >= self._least)]
        best = np.zeros(len(scores), np.bool_)
        if preset.clips_a_video is None:
            best[chosen] = True
            return best
        # Stable: of clips with one score the earlier stays.
        ranked = chosen[np.lexsort((chosen, -scores[chosen], sources[chosen]))]
        begins = np.flatnonzero(np.diff(sources[ranked], prepend=sources[ranked[:1]] + np.uint64(1)))
        lengths = np.diff(begins, append=len(ranked))
        places = np.arange(len(ranked)) - np.repeat(begins, lengths)
        best[ranked[places < preset.clips_a_video]] = True
        return best

    def apply(self, item: Item) -> Item:
        """The input, with its reason if it is not chosen: duplicate_key, no_score, low_score, clips_of_video."""
        entry, preset = item.entry, self._preset
        if item.number in self._repeated:
            detail = f"key {item.pair.key} came before"
            return Item(item.number, Entry(entry.name, reason="duplicate_key", detail=detail))
        if entry.reason is not None or preset is None or self._best is None or self._best[item.number]:
            return item
        if preset.score not in entry.scores:
            reason, detail = "no_score", f"has no {preset.score}"
        elif preset.over < entry.scores[preset.score] >= self._least:
            reason, detail = "clips_of_video", f"{preset.clips_a_video} clips of its video score higher"
        else:
            least = max(self._least, preset.over)
            reason = "low_score"
            detail = f"{preset.score} {entry.scores[preset.score]:g}, the subset begins at {least:g}"
        return Item(item.number, replace(entry, reason=reason, detail=detail, step="select"))
