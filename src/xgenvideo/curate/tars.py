"""WebDataset tars: KEY.mp4 with KEY.txt or KEY.json. Videos are unpacked under names of ours, never a member's."""

import json
import os
import re
import secrets
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

from xgenvideo.curate.pairs import MAX_LINE_BYTES, VIDEO_SUFFIXES, Entry, RefusedError
from xgenvideo.records import Pair

MAX_VIDEO_BYTES = 4 * 2**30
COPY_BYTES = 2**20


def read_tars(tars: list[Path], unpacked: Path) -> Iterator[Entry]:
    """Entries of all tars in order; a tar that breaks off ends with one entry, bad_archive."""
    for tar in tars:
        try:
            status = tar.stat()
            # A changed tar is another one: what was unpacked of the old one is not taken for it.
            stamp = f"{tar.resolve()} {status.st_size} {status.st_mtime_ns}".encode("utf-8", "surrogateescape")
            folder = unpacked / sha256(stamp).hexdigest()[:16]
            folder.mkdir(parents=True, exist_ok=True)
            with tarfile.open(tar, "r:") as archive:  # never compressed: a small file could not grow
                members = (member for member in archive if member.isfile())
                for stem, group in groupby(members, key=lambda member: _split(member.name)[0]):
                    yield _sample(archive, list(group), f"{tar.stem}/{stem}", folder, status.st_mtime_ns)
        except (tarfile.TarError, OSError, EOFError) as error:
            yield Entry(tar.name, reason="bad_archive", detail=str(error)[:200])


def _split(name: str) -> tuple[str, str]:
    """(key, suffix): the file name is cut at its first dot, as WebDataset does."""
    folder, slash, file = name.rpartition("/")
    stem, dot, suffix = file.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _sample(archive: tarfile.TarFile, members: list[tarfile.TarInfo], name: str, unpacked: Path, time_ns: int) -> Entry:
    shown = name.encode("utf-8", "backslashreplace").decode()
    try:
        files = {_split(member.name)[1]: member for member in members}
        videos = sorted(files.keys() & VIDEO_SUFFIXES)
        if not videos:
            raise RefusedError("missing_file", "no video in the sample")
        values = _values(archive, files)
        caption = " ".join(values["caption"].split())
        if not caption:
            raise RefusedError("no_caption", "neither .txt nor a caption in .json")
        digest = sha256(name.encode("utf-8", "surrogateescape")).hexdigest()
        path = unpacked / (digest[:32] + videos[0])
        _unpack(archive, files[videos[0]], path, time_ns)
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60]
        pair = Pair(f"{stem}-{digest[:8]}", shown + videos[0], caption, values["source"] or shown,
                    licence=values["licence"] or "unknown")  # fmt: skip
        return Entry(shown, pair, path)
    except RefusedError as refused:
        return Entry(shown, reason=refused.reason, detail=refused.detail)


def _values(archive: tarfile.TarFile, files: dict[str, tarfile.TarInfo]) -> dict[str, str]:
    """Caption, source and licence from .json, the caption from .txt before that."""
    found: dict[str, Any] = {}
    try:
        if ".json" in files:
            found = json.loads(_text(archive, files[".json"]))
        if not isinstance(found, dict):
            raise RefusedError("bad_record", ".json is not an object")
        if ".txt" in files:
            found["caption"] = _text(archive, files[".txt"])
        names = {"caption": ("caption",), "source": ("source", "url"), "licence": ("licence", "license")}
        values = {ours: next((found[name] for name in theirs if name in found), "") for ours, theirs in names.items()}
        if not all(isinstance(value, str) for value in values.values()):
            raise RefusedError("bad_record", "caption, source or licence is not text")
        for value in values.values():
            value.encode("utf-8")
    except UnicodeError as error:
        raise RefusedError("caption_encoding", "not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RefusedError("bad_record", f".json: {error}"[:200]) from error
    return values


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    stream = archive.extractfile(member)
    if stream is None or member.size > MAX_LINE_BYTES:
        raise RefusedError("bad_record", f"{member.size} bytes of text, at most {MAX_LINE_BYTES}")
    return stream.read().decode("utf-8-sig")


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, time_ns: int) -> None:
    """Copy a member to `path`, whole or not at all; what an earlier run copied is taken if its size is the same."""
    if member.size > MAX_VIDEO_BYTES:
        raise RefusedError("too_large", f"{member.size} bytes, at most {MAX_VIDEO_BYTES}")
    if path.exists() and path.stat().st_size == member.size:
        return
    stream = archive.extractfile(member)
    assert stream is not None, f"{member.name} is a file"
    part = path.with_suffix(f".{secrets.token_hex(4)}.part")  # another machine may be unpacking the same tar
    with part.open("wb") as file:
        while content := stream.read(COPY_BYTES):
            file.write(content)
    os.utime(part, ns=(time_ns, time_ns))  # unpacked again, it is the same input
    part.replace(path)
