"""Reading an input folder: `pairs.jsonl`, or videos with captions in text files beside them.

Strangers' data: every line or file becomes one Entry, readable or not, and no path may lead out of the folder.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from xgenvideo.data.dataset import KEY_RULE, SPLIT_RULE
from xgenvideo.errors import DataError
from xgenvideo.records import Pair, Question

MAX_LINE_BYTES = 2**20
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".ogv", ".mpg", ".mpeg", ".ts", ".wmv", ".gif", ".3gp")
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One input: `pair` and `path` (real, inside the folder), or the `reason` why it is not used, with its step.

    `url`: where its video is fetched from when it is not here. http and https may come from a listing, others do not.
    `start`, `end`: the clip's seconds in its video file, None for the end of the file. `scores`: the publisher's.
    """

    name: str
    pair: Pair | None = None
    path: Path | None = None
    reason: str | None = None
    detail: str = ""
    start: float = 0.0
    end: float | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    step: str = "read"
    url: str | None = None


class RefusedError(Exception):
    """One input is refused with a reason code; never leaves curation."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


def read_entries(source: Path) -> Iterator[Entry]:
    """All inputs of a folder in order. Raises DataError when the folder itself cannot be read."""
    source = Path(source)
    if not source.is_dir():
        raise DataError(f"{source}: is not a folder; give the folder that holds pairs.jsonl or the videos")
    root = source.resolve()
    listing = root / "pairs.jsonl"
    if listing.is_symlink() and not listing.resolve().is_relative_to(root):
        raise DataError(f"{listing}: is a link out of the folder; put the file itself there")
    entries = _from_jsonl(root, listing) if listing.is_file() else _from_sidecars(root)
    first = next(entries, None)
    if first is None:
        raise DataError(f"{source}: has no pairs.jsonl and no videos ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return chain([first], entries)


def _from_jsonl(root: Path, listing: Path) -> Iterator[Entry]:
    for number, line in bounded_lines(listing):
        if line is None:
            yield Entry(f"line {number}", reason="bad_record", detail=f"longer than {MAX_LINE_BYTES} bytes")
        else:
            yield _read_line(root, line, number)


def bounded_lines(listing: Path) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) of every line that is not blank; None for one that is too long to be held."""
    with listing.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                    pass
                yield number, None
            elif line.strip():
                yield number, line


def _read_line(root: Path, line: bytes, number: int) -> Entry:
    name = f"line {number}"
    try:
        values = parse_line(line)
        name = str(values.get("key", name)).encode("ascii", "backslashreplace").decode()[:80]
        pair = _pair(values)
        return Entry(name, pair, inside(root, pair.video))
    except RefusedError as refused:
        return Entry(name, reason=refused.reason, detail=refused.detail)


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object of one line; refuses (caption_encoding, bad_record) what is none."""
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RefusedError("caption_encoding", f"not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise RefusedError("bad_record", f"not JSON: {error}"[:200]) from error
    if not isinstance(values, dict):
        raise RefusedError("bad_record", "not a JSON object")
    return values


def _pair(values: dict[str, Any]) -> Pair:
    """The record of one line, its types and names checked."""
    for name in ("key", "video", "caption", "source"):
        if not isinstance(values.get(name), str) or not values[name].strip():
            raise RefusedError("bad_record", f"{name} is missing or is not text")
    for name in ("twin", "split", "licence"):
        if not isinstance(values.get(name), str | None):
            raise RefusedError("bad_record", f"{name} is not text")
    if not KEY_RULE.fullmatch(values["key"]):
        raise RefusedError("bad_record", "key is not 1 to 80 letters, digits, '-' and '_'")
    if values.get("split") is not None and not SPLIT_RULE.fullmatch(values["split"]):
        raise RefusedError("bad_record", "split is not 1 to 32 of a-z, 0-9 and '_'")
    try:
        questions = tuple(Question.from_dict(item) for item in values.get("questions") or ())
        for text in (values["caption"], values["source"], *(q.text + "".join(q.options) for q in questions)):
            text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefusedError("caption_encoding", "half a surrogate pair in the text") from error
    except (DataError, TypeError, AttributeError) as error:
        raise RefusedError("bad_record", f"questions: {error}"[:200]) from error
    return Pair(
        key=values["key"],
        video=values["video"],
        caption=" ".join(values["caption"].split()),
        source=values["source"],
        questions=questions,
        twin=values.get("twin"),
        licence=values.get("licence") or "unknown",
        split=values.get("split"),
    )


def inside(root: Path, name: str) -> Path:
    """The real path of `name` in the folder. Refuses (outside_folder) names and links that lead out of it."""
    if "\0" in name or len(name) > 4000:
        raise RefusedError("bad_record", "video is not a file name")
    if Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name or "://" in name:
        raise RefusedError("outside_folder", "video must be a path below the folder")
    try:
        path = (root / name).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise RefusedError("missing_file", str(error)[:200]) from error
    if not path.is_relative_to(root):
        raise RefusedError("outside_folder", "a link leads out of the folder")
    return path


def _from_sidecars(root: Path) -> Iterator[Entry]:
    taken: set[str] = set()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.suffix.lower() not in VIDEO_SUFFIXES or path.is_dir():
            continue
        shown = name.encode("utf-8", "backslashreplace").decode()
        try:
            caption = _sidecar(root, path)
            stem = re.sub(r"[^A-Za-z0-9_-]+", "-", path.relative_to(root).with_suffix("").as_posix()).strip("-")[:60]
            unique = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            key = f"{stem}-{unique}" if stem in taken or not stem else stem
            taken.add(key)
            yield Entry(shown, Pair(key, shown, caption, source=shown), inside(root, name))
        except RefusedError as refused:
            yield Entry(shown, reason=refused.reason, detail=refused.detail)


def _sidecar(root: Path, video: Path) -> str:
    file = inside(root, video.with_suffix(".txt").relative_to(root).as_posix())
    if not file.is_file():
        raise RefusedError("no_caption", f"{video.stem}.txt is not there")
    with file.open("rb") as stream:
        raw = stream.read(MAX_LINE_BYTES + 1)
    if len(raw) > MAX_LINE_BYTES:
        raise RefusedError("bad_record", f"its caption is longer than {MAX_LINE_BYTES} bytes")
    try:
        caption = " ".join(raw.decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise RefusedError("caption_encoding", f"not UTF-8 at byte {error.start}") from error
    if not caption:
        raise RefusedError("no_caption", f"{video.stem}.txt is empty")
    return caption


def choose_split(pair: Pair, heldout_share: float) -> Pair:
    """The pair with its split: its own, or by the hash of its source, so that clips of one source stay together."""
    if pair.split is not None:
        return pair
    share = int.from_bytes(hashlib.sha256(pair.source.encode()).digest()[:8], "big") / 2**64
    return replace(pair, split="heldout" if share < heldout_share else "train")
