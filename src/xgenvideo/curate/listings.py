"""Readers of datasets' own listings: Panda-70M and WebVid CSV, InternVid JSONL. They are strangers' data.

Every clip becomes one Entry, readable or not; a row that cannot be read at all becomes one. Python lists in text are
read as literals, never run. A clip's video is the whole source, `ID.mp4`, or the clip cut from it, `ID.NUMBER.mp4`.
"""

import ast
import csv
import json
import math
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from xgenvideo.curate.pairs import MAX_LINE_BYTES, Entry, RefusedError, bounded_lines, parse_line
from xgenvideo.curate.places import SUFFIXES, Place, Videos, linked_place, youtube
from xgenvideo.errors import DataError
from xgenvideo.records import Pair

PANDA = "Panda-70M: non-commercial research use"
INTERNVID = "CC BY-NC-SA 4.0"
PANDA_LISTS = ("timestamp", "caption", "matching_score", "desirable_filtering", "shot_boundary_detection")
ID_RULE = re.compile(r"[A-Za-z0-9_-]{1,64}")
TIME_RULE = re.compile(r"(\d{1,3}):([0-5]?\d):([0-5]?\d(?:\.\d{1,9})?)")


def read_csv(listing: Path, videos: Videos) -> Iterator[Entry]:
    """Entries of a Panda-70M or WebVid CSV, told apart by its columns. Raises DataError."""
    _whole.cache_clear()  # files may have come since another listing was read
    rows = _rows(listing)
    header = next(rows)[1]
    if isinstance(header, RefusedError):
        raise DataError(f"{listing}: its first row, the names of the columns, cannot be read ({header.detail})")
    if {"videoID", "timestamp", "caption"} <= set(header):
        return _each(rows, header, videos, _panda)
    if {"videoid", "name"} <= set(header):
        return _each(rows, header, videos, _webvid)
    raise DataError(
        f"{listing}: its columns are {', '.join(header)[:200]!r}; a Panda-70M CSV has videoID, timestamp and caption, "
        "a WebVid CSV videoid and name"
    )


def read_jsonl(listing: Path, videos: Videos) -> Iterator[Entry]:
    """Entries of an InternVid JSONL, with UMT_Score or UMT-SIM, and Language and Category where it has them."""
    _whole.cache_clear()
    for number, line in bounded_lines(listing):
        name = f"line {number}"
        try:
            if line is None:
                raise RefusedError("bad_record", f"longer than {MAX_LINE_BYTES} bytes")
            yield _internvid(parse_line(line), number, videos)
        except RefusedError as refused:
            yield Entry(name, reason=refused.reason, detail=refused.detail)


def _rows(listing: Path) -> Iterator[tuple[str, list[str] | RefusedError]]:
    """(name, cells) of each row, the header first. Rows come in lines of bounded length."""
    csv.field_size_limit(MAX_LINE_BYTES)  # the module's own limit, 128 KiB, is below what long videos have
    with listing.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(iter(lambda: file.readline(MAX_LINE_BYTES), ""))
        number = 0
        while True:
            number += 1
            try:
                cells = next(reader)
            except StopIteration:
                if number == 1:
                    raise DataError(f"{listing}: is empty; a CSV begins with the names of its columns") from None
                return
            except csv.Error as error:
                yield f"row {number}", RefusedError("bad_record", str(error)[:200])
                continue
            if cells:
                yield f"row {number}", cells


def _each(rows: Iterator[tuple[str, Any]], header: list[str], videos: Videos, read: Any) -> Iterator[Entry]:
    for name, cells in rows:
        try:
            if isinstance(cells, RefusedError):
                raise cells
            if len(cells) != len(header):
                raise RefusedError("bad_record", f"{len(cells)} cells, the header has {len(header)}")
            yield from read(dict(zip(header, cells, strict=True)), videos)
        except RefusedError as refused:
            yield Entry(name, reason=refused.reason, detail=refused.detail)


def _panda(row: dict[str, str], videos: Videos) -> Iterator[Entry]:
    """The clips of one row: a source video with parallel lists. A wrong clip costs that clip, wrong lists the row."""
    video = _identity(row["videoID"])
    lists = {column: _literal(row[column], column) for column in PANDA_LISTS if column in row}
    lengths = {column: len(values) for column, values in lists.items()}
    if len(set(lengths.values())) > 1:
        raise RefusedError("unequal_lists", ", ".join(f"{column} {length}" for column, length in lengths.items()))
    if not lengths["caption"]:
        raise RefusedError("bad_record", "the lists are empty")
    for number in range(lengths["caption"]):
        clip = {column: values[number] for column, values in lists.items()}
        name = f"{video}.{number}"
        try:
            start, end = _span(clip["timestamp"])
            caption = _caption(clip["caption"])
            # Relative to the clip, as the dataset has them.
            scores = {"desirable": clip.get("desirable_filtering"), "shots": clip.get("shot_boundary_detection")}
            scores = {key: value for key, value in scores.items() if value is not None}
            scores |= _score(clip, "matching_score", "matching_score")
            _check_json(scores)
        except RefusedError as refused:
            yield Entry(name, reason=refused.reason, detail=refused.detail)
            continue
        link = row.get("url", "").strip() or youtube(video)
        yield _clip(videos, (video, number, link), caption, (start, end), PANDA, scores)


def _internvid(values: dict[str, Any], number: int, videos: Videos) -> Entry:
    """One line is one clip. Keys are named by the line: clips of a video do not stand together."""
    video = _identity(values.get("YoutubeID"))
    span = _span([values.get("Start_timestamp"), values.get("End_timestamp")])
    caption = _caption(values.get("Caption"))
    scores = _score(values, "UMT_Score", "umt_sim") | _score(values, "UMT-SIM", "umt_sim")
    scores |= _score(values, "Aesthetic_Score", "aesthetic")
    for column in ("Language", "Category"):
        if isinstance(values.get(column), str):
            scores[column.lower()] = values[column][:80]
    _check_json(scores)
    return _clip(videos, (video, number, youtube(video)), caption, span, INTERNVID, scores)


def _webvid(row: dict[str, str], videos: Videos) -> Iterator[Entry]:
    """One row is one short video, `VIDEOID.mp4`, in the folder that `page_dir` names if it has that column."""
    video = _identity(row["videoid"])
    caption = _caption(row["name"])
    file = f"{row['page_dir'].strip()}/{video}.mp4" if row.get("page_dir", "").strip() else f"{video}.mp4"
    link = row.get("contentUrl", "").strip()
    place = linked_place(link) if videos.linked and link and not videos.holds(file) else videos.place(file)
    # Its publisher withdrew it: what one may do with a copy is not known.
    pair = Pair(video, place.name, caption, source=f"webvid/{video}")
    yield Entry(video, pair, place.path, url=place.url)


def _clip(
    videos: Videos,
    clip: tuple[str, int, str],
    caption: str,
    span: tuple[float, float],
    licence: str,
    scores: dict[str, Any],
) -> Entry:
    """A clip (video, number, URL of the video): of the whole source, or a file that holds this clip alone."""
    video, number, link = clip
    name, key = f"{video}.{number}", f"{video}-{number:04d}"
    start: float
    end: float | None
    start, end = span
    whole = _whole(videos, video)
    alone = "" if whole.there else _find(videos, name)
    try:
        if alone and videos.holds(alone):
            scores, start, end = scores | {"source_start": start, "source_end": end}, 0.0, None
            place = videos.place(alone)
        elif videos.linked and not whole.there:
            place = linked_place(link)
        else:
            place = whole.place or videos.place(whole.file)
    except RefusedError as refused:
        return Entry(name, reason=refused.reason, detail=refused.detail)
    pair = Pair(key, place.name, caption, source=whole.source, licence=licence)
    return Entry(name, pair, place.path, start=start, end=end, scores=scores, url=place.url)


class _Whole(NamedTuple):
    """The file of a whole source: its name, whether it is there, and where it is or would be."""

    file: str
    there: bool
    place: Place | None
    source: str


@lru_cache(maxsize=4096)
def _whole(videos: Videos, video: str) -> _Whole:
    """Looked up once for the clips of a video: they are many, and mostly stand together."""
    file = _find(videos, video)
    there = videos.holds(file)
    try:
        place = videos.place(file)
    except RefusedError:
        if there:
            raise
        place = None  # each clip says so itself
    return _Whole(file, there, place, f"youtube/{video}")


def _find(videos: Videos, stem: str) -> str:
    return next((stem + suffix for suffix in SUFFIXES if videos.holds(stem + suffix)), stem + SUFFIXES[0])


def _identity(value: Any) -> str:
    if not isinstance(value, str) or not ID_RULE.fullmatch(value.strip()):
        raise RefusedError("bad_record", "the video's id is not 1 to 64 letters, digits, '-' and '_'")
    return value.strip()


def _literal(text: str, column: str) -> list[Any]:
    """A Python list in text. Literals only: a call, a name or an attribute is refused, and nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in captions
            value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise RefusedError("bad_list", f"{column} is no list of plain values ({type(error).__name__})") from error
    if not isinstance(value, list):
        raise RefusedError("bad_list", f"{column} is no list")
    return value


def _span(value: Any) -> tuple[float, float]:
    """Seconds of a clip's start and end, from two times such as 0:00:11.711."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise RefusedError("bad_times", "a clip has two times, its start and its end")
    start, end = (_seconds(time) for time in value)
    if end <= start:
        raise RefusedError("bad_times", f"the clip ends at {end:g} s, and starts at {start:g} s")
    return start, end


def _seconds(time: Any) -> float:
    found = TIME_RULE.fullmatch(time.strip()) if isinstance(time, str) and time.isascii() else None
    if found is None:
        raise RefusedError("bad_times", f"{str(time)[:40]!a} is no time such as 0:00:11.711")
    hours, minutes, seconds = found.groups()
    return round(int(hours) * 3600 + int(minutes) * 60 + float(seconds), 6)


def _caption(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RefusedError("no_caption", "the caption is empty or is not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefusedError("caption_encoding", "the caption is not UTF-8") from error
    return " ".join(value.split())


def _score(values: dict[str, Any], column: str, name: str) -> dict[str, float]:
    """The score under our name; none where the listing has none. Refuses (bad_score) what is no finite number."""
    value = values.get(column)
    if value is None or value == "":
        return {}
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RefusedError("bad_score", f"{column} {str(value)[:40]!a} is no number") from error
    if isinstance(value, bool) or not math.isfinite(score):
        raise RefusedError("bad_score", f"{column} {str(value)[:40]!a} is no finite number")
    return {name: score}


def _check_json(scores: dict[str, Any]) -> None:
    """Bytes, sets and complex numbers are literals too, but travel in no JSON."""
    try:
        json.dumps(scores, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise RefusedError("bad_list", f"holds what JSON cannot ({error})"[:200]) from error
