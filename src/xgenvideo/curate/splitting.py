"""From the shots of a source to the clips that curation goes on with."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from xgenvideo.curate.fetched import Wish, bring, place_of
from xgenvideo.curate.inputs import Item
from xgenvideo.curate.pairs import Entry
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.shots import Shot, ShotModel, find_shots
from xgenvideo.curate.stages import TRANSIENT, Workplace
from xgenvideo.curate.workers import DecodePool


def split_shots(items: Iterable[Item], work: Workplace) -> list[Item]:
    """Clips of the shots of every input; one that cannot be looked through stays whole, for decoding to say why."""
    entries = [item.entry for item in items]
    scan_shots(entries, work)
    return [Item(number, entry) for number, entry in enumerate(chain.from_iterable(_clips(e, work) for e in entries))]


def _clips(entry: Entry, work: Workplace) -> Iterable[Entry]:
    name = _scan_name(entry)
    shots = work.shots[name]["shots"] if name is not None and name in work.shots else []
    return as_clips(entry, shots, work.settings) if shots and entry.pair is not None else (entry,)


def scan_shots(entries: Iterable[Entry], work: Workplace) -> None:
    """Store where the shots of every input are, or that it cannot be looked through."""
    settings = work.settings
    folder = work.folder / "scans"
    folder.mkdir(exist_ok=True)
    jobs = {
        name: {"path": str(path), "out": str(folder / f"{name[:32]}.npz"), "start": entry.start,
               "end": entry.end, "max_seconds": settings.max_scan_seconds}
        for name, entry, path in _files([entry for entry in entries if not _scanned(entry, work)], work)
    }  # fmt: skip
    model = ShotModel() if jobs and settings.split_shots == "transnetv2" else None
    processes = min(settings.processes, max(1, len(jobs)))
    with DecodePool(processes, settings.scan_seconds, settings.decode_memory_mb) as pool:
        for name, answer in work.tell("shots", pool.run(jobs.items()), len(jobs)):
            if "frames" not in answer:
                work.shots.put(name, {"shots": [], "reason": answer.get("reason")})
                continue
            path = Path(str(jobs[name]["out"]))
            with np.load(path, allow_pickle=False) as scan:
                frames, times = scan["frames"], scan["times"]
            path.unlink()
            found = find_shots(frames, times, answer["seconds"], model.chances(frames) if model else None)
            work.shots.put(name, {"shots": found})


def _files(entries: list[Entry], work: Workplace) -> Iterator[tuple[str, Entry, Path]]:
    """The name, entry and file of inputs to look through; those that cannot be had are noted as without shots."""
    notes = bring([Wish(entry.url) for entry in entries if entry.url is not None], work)
    for entry in entries:
        name, note = _scan_name(entry), notes.get(Wish(entry.url)) if entry.url is not None else None
        assert name is not None, f"{entry.name} has no video"
        if note is not None and "reason" not in note:
            yield name, entry, place_of(note, work)
        elif entry.path is not None:
            yield name, entry, entry.path
        elif note is not None and note["reason"] not in TRANSIENT:
            work.shots.put(name, {"shots": [], "reason": note["reason"]})


def _scanned(entry: Entry, work: Workplace) -> bool:
    """Whether an input has been looked through, or need not be."""
    name = _scan_name(entry)
    return name is None or name in work.shots


def _scan_name(entry: Entry) -> str | None:
    """What an input is known by before anything is read of it: its file's size and time or its URL, and its times."""
    if entry.url is not None and entry.reason is None:
        return hashlib.sha256(json.dumps([entry.name, entry.url, entry.start, entry.end]).encode()).hexdigest()
    if entry.path is None or not entry.path.is_file():
        return None
    status = entry.path.stat()
    values = [entry.name, status.st_size, status.st_mtime_ns, entry.start, entry.end]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def as_clips(entry: Entry, shots: list[Shot], settings: CurateSettings) -> Iterator[Entry]:
    """The clips of an input: one for each shot, numbered, cut evenly where a shot is longer than a clip may be.

    Shots shorter than a clip may be come back with a reason, so that they are counted. An input that is one shot of a
    fitting length stays as it is. Times are of the source video.
    """
    assert entry.pair is not None, f"{entry.name} has no record"
    pieces = []
    for start, end in shots:
        parts = max(1, math.ceil((end - start) / settings.max_clip_seconds - 1e-6))
        pieces += [
            (start + (end - start) * part / parts, start + (end - start) * (part + 1) / parts) for part in range(parts)
        ]
    if len(pieces) == 1 and pieces[0][1] - pieces[0][0] >= settings.min_clip_seconds:
        yield entry
        return
    for number, (start, end) in enumerate(pieces):
        key = f"{_short(entry.pair.key)}-shot{number}"
        pair = dataclasses.replace(entry.pair, key=key, twin=None, questions=())
        fits = end - start >= settings.min_clip_seconds
        yield dataclasses.replace(
            entry,
            name=key,
            pair=pair,
            start=round(entry.start + start, 6),
            end=round(entry.start + end, 6),
            reason=None if fits else "shot_too_short",
            detail="" if fits else f"{end - start:.2f} s, at least {settings.min_clip_seconds:g} s",
            step=entry.step if fits else "shots",
        )


def _short(key: str) -> str:
    """The key, with a hash for its end where a number behind it would make it longer than a key may be (80)."""
    return key if len(key) <= 68 else f"{key[:55]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
