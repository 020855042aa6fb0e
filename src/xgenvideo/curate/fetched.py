"""Videos that are elsewhere, brought into the work folder by threads: each once, under the hash of its content.

What was fetched, and what cannot be had, is noted as scores are: a run that goes on asks for neither again. A host that
was silent or too slow is asked again by the next run.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xgenvideo.curate.download import (
    Limits,
    Span,
    download_hook,
    download_http,
    download_object,
    download_ytdlp,
    find_hook,
    find_ytdlp,
)
from xgenvideo.curate.inputs import Item
from xgenvideo.curate.pairs import Entry, RefusedError
from xgenvideo.curate.settings import CurateSettings, Decision
from xgenvideo.curate.stages import TRANSIENT, Workplace, clip_hash, content_hash
from xgenvideo.errors import DataError

FOLDER = "fetched"
HEIGHTS = (240, 360, 480, 720, 1080, 2160)  # lines that sites offer
MOST_UNREACHABLE = 20  # of a unit, and not one that was: the network is down, and not a host

Note = dict[str, Any]  # {"url", "sha256", "bytes"}, or {"url", "reason", "detail", "under"}


@dataclass(frozen=True)
class Wish:
    """What to fetch: a video, or one span of it."""

    url: str
    span: Span | None = None

    @property
    def name(self) -> str:
        """What it is noted under."""
        return hashlib.sha256(json.dumps([self.url, self.span]).encode()).hexdigest()


def wish_of(entry: Entry, settings: CurateSettings) -> Wish:
    """What an input needs: its clip alone, where sections are asked for, or else the video."""
    assert entry.url is not None, f"{entry.name} is not elsewhere"
    sections = settings.download_sections and entry.end is not None and not _stored(entry.url)
    return Wish(entry.url, (entry.start, float(entry.end or 0.0)) if sections else None)


def download(items: list[Item], work: Workplace) -> None:
    """Give every item whose video is elsewhere its file, or a reason. Nothing is fetched for a clip that is decoded."""
    far = [(item, wish_of(item.entry, work.settings)) for item in items if item.entry.url is not None]
    notes = bring([wish for item, wish in far if not _decoded(item, _noted(wish, work), work)], work)
    for item, wish in far:
        note = notes.get(wish) or _noted(wish, work)
        assert note is not None, f"{wish.url} was neither fetched nor refused"
        if "reason" in note:
            item.decisions.append(Decision("download", note["reason"], detail=note["detail"]))
            continue
        item.entry = _located(item.entry, wish, note, work)
        item.content = item.content or clip_hash(note["sha256"], item.entry)


def bring(wishes: Iterable[Wish], work: Workplace) -> dict[Wish, Note]:
    """Fetch what is not in the work folder; what each wish came to. Raises DataError when no host can be reached."""
    notes, missing = {}, []
    for wish in dict.fromkeys(wishes):
        note = _noted(wish, work)
        if note is None or ("reason" not in note and not place_of(note, work).exists()):
            missing.append(wish)
        else:
            notes[wish] = note
    for wish, note in _fetch(missing, work):
        notes[wish] = note
        if note.get("reason") not in TRANSIENT:
            work.downloads.put(wish.name, note)
    return notes


def place_of(note: Note, work: Workplace) -> Path:
    """Where a fetched video lies."""
    return work.folder / FOLDER / f"{note['sha256']}.video"


def discard(items: list[Item], work: Workplace) -> None:
    """Remove the fetched videos of items; what was decoded of them stays."""
    for path in {item.entry.path for item in items if item.entry.url is not None}:
        if path is not None:
            path.unlink(missing_ok=True)


def _stored(url: str) -> bool:
    return not url.startswith(("http://", "https://"))


def _noted(wish: Wish, work: Workplace) -> Note | None:
    """What is known of a wish. A reason holds for the settings that it came about under."""
    if wish.name not in work.downloads:
        return None
    note = work.downloads[wish.name]
    return note if note.get("under", _rules(work)) == _rules(work) else None


def _rules(work: Workplace) -> str:
    return work.settings.signature("download", "download_hosts", "max_download_mb")


def _decoded(item: Item, note: Note | None, work: Workplace) -> bool:
    """Whether the file is not needed any more, or cannot be had."""
    if note is None or "reason" in note:
        return note is not None
    content = item.content or clip_hash(
        note["sha256"], _located(item.entry, wish_of(item.entry, work.settings), note, work)
    )
    return content is not None and work.has_clip(content)


def _located(entry: Entry, wish: Wish, note: Note, work: Workplace) -> Entry:
    """The input with its file; one that was fetched alone is a file that holds this clip alone."""
    path = place_of(note, work)
    if wish.span is None:
        return replace(entry, path=path)
    times = {"source_start": entry.start, "source_end": entry.end}
    return replace(entry, path=path, start=0.0, end=None, scores=entry.scores | times)


def _fetch(wishes: list[Wish], work: Workplace) -> Iterator[tuple[Wish, Note]]:
    """Every wish with what it came to, as they are done. The spans of one video are fetched together."""
    if not wishes:
        return
    way, groups = _way(wishes, work.settings), defaultdict(list)
    for wish in wishes:
        groups[wish.url].append(wish)
    folder = work.folder / FOLDER
    own = folder / f"part{work.part}"  # a part runs once at a time: what lies there is of one that was killed
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    done = unreachable = 0
    with ThreadPoolExecutor(work.settings.download_workers) as pool:
        jobs = [pool.submit(_fetch_video, group, own, way, _rules(work)) for group in groups.values()]
        try:
            for job in as_completed(jobs):
                for wish, note in job.result():
                    done += 1
                    unreachable += note.get("reason") == "download_unreachable"
                    yield wish, note
                    work.report("download", done, len(wishes))
                    if unreachable == done >= MOST_UNREACHABLE:
                        raise DataError(
                            f"none of the first {done} videos could be reached, the last {wish.url} "
                            f"({note['detail']}); mend the network and run again: what was fetched stays"
                        )
        finally:
            pool.shutdown(cancel_futures=True)
    shutil.rmtree(own, ignore_errors=True)


Way = Callable[[str, list[Wish], Path], list[Path]]  # files of one video's wishes, in an empty folder


def _way(wishes: list[Wish], settings: CurateSettings) -> Way:
    """How the settings have videos fetched. Raises ConfigError, MissingExtra."""
    limits = Limits(settings.hosts, settings.max_download_mb, settings.download_seconds)
    linked = any(not _stored(wish.url) for wish in wishes)
    if settings.download == "yt-dlp" and linked:
        find_ytdlp(settings.download_sections)  # before the first is asked for
    hook = find_hook(settings.download) if ":" in settings.download and linked else None
    height = min((height for height in HEIGHTS if height >= settings.short_side), default=settings.short_side)

    def fetch(url: str, group: list[Wish], folder: Path) -> list[Path]:
        to = folder / "video"
        if _stored(url):
            download_object(url, to, limits)
        elif settings.download == "yt-dlp":
            return download_ytdlp(url, folder, [wish.span for wish in group if wish.span is not None], height, limits)
        elif hook is not None:
            download_hook(hook, url, to, limits)
        else:
            download_http(url, to, limits)
        return [to]

    return fetch


def _fetch_video(group: list[Wish], own: Path, way: Way, rules: str) -> list[tuple[Wish, Note]]:
    """Fetch one video; move what came under the name of its content."""
    folder = own / secrets.token_hex(8)
    folder.mkdir()
    try:
        files = way(group[0].url, group, folder)
        return [(wish, {"url": wish.url} | _keep(file, own.parent)) for wish, file in zip(group, files, strict=True)]
    except RefusedError as refused:
        note = {"url": group[0].url, "reason": refused.reason, "detail": refused.detail, "under": rules}
        return [(wish, note) for wish in group]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(file: Path, folder: Path) -> Note:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    digest = content_hash(file)
    note = {"sha256": digest, "bytes": file.stat().st_size}
    file.replace(folder / f"{digest}.video")
    return note
