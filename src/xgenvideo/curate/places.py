"""Where the videos of a listing are: in a local folder, in a folder of an object store, or at a URL of the listing."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import NamedTuple, Protocol

from xgenvideo.curate.pairs import RefusedError, inside
from xgenvideo.curate.stores import is_url, names_in
from xgenvideo.errors import DataError

SUFFIXES = (".mp4", ".webm", ".mkv")
LINK_RULE = re.compile(r"https?://[!-~]{1,2000}")


class Place(NamedTuple):
    """One video: its name in the record, and its file here or its URL elsewhere."""

    name: str
    path: Path | None = None
    url: str | None = None


class Videos(Hashable, Protocol):
    """The videos of a listing. `linked`: one that is missing may be fetched from the URL that the listing gives."""

    linked: bool

    def holds(self, name: str) -> bool:
        """Whether a file of this name is there."""

    def place(self, name: str) -> Place:
        """Where it is, there or not. Refuses (outside_folder, missing_file)."""


class Folder:
    """A local folder."""

    def __init__(self, root: Path, linked: bool = False) -> None:
        self.root, self.linked = root, linked

    def holds(self, name: str) -> bool:
        """Whether a file of this name is there."""
        return (self.root / name).exists()

    def place(self, name: str) -> Place:
        """Where it is, there or not. Refuses (outside_folder) names and links that lead out of the folder."""
        return Place(name, path=inside(self.root, name))


class Bucket:
    """A folder of an object store, listed once: one question for each of millions of videos would take days."""

    def __init__(self, url: str, linked: bool = False) -> None:
        self.url, self.linked = url.rstrip("/"), linked
        self._names = names_in(url, SUFFIXES)

    def holds(self, name: str) -> bool:
        """Whether an object of this name was there when it was listed."""
        return name in self._names

    def place(self, name: str) -> Place:
        """Its URL. Refuses (missing_file) what was not listed, so that no name leads out of the folder."""
        if name not in self._names:
            raise RefusedError("missing_file", f"{name[:80]} is not in {self.url[:80]}")
        url = f"{self.url}/{name}"
        return Place(url, url=url)


def videos_at(place: Path | str, linked: bool) -> Videos:
    """The videos in a local folder, or below s3://bucket/folder. Raises DataError, ConfigError, MissingExtra."""
    if is_url(place):
        return Bucket(str(place), linked)
    root = Path(place).resolve()
    if not root.is_dir():
        raise DataError(f"{root}: is not a folder; give the folder that holds the videos of the listing")
    return Folder(root, linked)


def linked_place(text: str) -> Place:
    """The place that a listing's URL names. Refuses (download_refused_host) all but http and https."""
    url = text.strip()
    if not LINK_RULE.fullmatch(url):
        raise RefusedError("download_refused_host", f"{url[:80]!a} is no http or https URL")
    return Place(url, url=url)


def youtube(video: str) -> str:
    """The URL of a video of YouTube's."""
    return f"https://www.youtube.com/watch?v={video}"
