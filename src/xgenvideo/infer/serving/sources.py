"""Where a request's video comes from: bytes sent along, an upload, an allowed path, or an allowed host."""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from xgenvideo.errors import ConfigError

FORMS = ("video_url", "input_video", "file")


@dataclass(frozen=True)
class Sent:
    """Bytes that came with the request, in a file of its own."""

    path: Path


@dataclass(frozen=True)
class Uploaded:
    """A video that was uploaded and watched before, by its id."""

    id: str


@dataclass(frozen=True)
class Stored:
    """A file in an allowed folder; `name` is how it was asked for."""

    path: Path
    name: str


@dataclass(frozen=True)
class Remote:
    """An address on an allowed host."""

    url: str


Source = Sent | Uploaded | Stored | Remote


@dataclass(frozen=True)
class Places:
    """What may be opened besides what is sent: files below `folders`, addresses on `hosts`.

    `incoming`: the folder of one request, where what it sends along is put; memory would have to hold all that wait.
    """

    folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    incoming: Path | None = None


def video_of(part: dict[str, Any], places: Places, max_mb: float) -> Source | None:
    """The video of one content part, None for a part that is no video. Raises ConfigError.

    Accepted are {"type": "video_url", "video_url": {"url": URL}}, {"type": "input_video", "input_video": {"data":
    BASE64}} and {"type": "file", "file": {"file_id": ID}} or {"file_data": DATA_URL}; URL is a data URL, a path below
    an allowed folder, or http(s) on an allowed host.
    """
    kind = part.get("type")
    if kind not in FORMS:
        return None
    given = part.get(str(kind))
    about = given if isinstance(given, dict) else {"url": given}
    if "file_id" in about:
        return Uploaded(str(about["file_id"]))
    if "data" in about:
        return _sent(str(about["data"]), "input_video", places)
    return read_url(about.get("url", about.get("video_url", about.get("file_data"))), places, max_mb)


def read_url(url: object, places: Places, max_mb: float) -> Source:
    """A base64 data URL, a path below an allowed folder once all links are followed, or an allowed host's address.

    Raises ConfigError.
    """
    if not isinstance(url, str) or not url:
        raise ConfigError("video_url", url, "must be a data URL, a path, or an address on an allowed host")
    if url.startswith("data:"):
        head, comma, data = url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ConfigError("video_url", head[:60], "a data URL must be base64: data:video/mp4;base64,...")
        return _sent(data, "video_url", places)
    if "://" in url and not url.startswith("file://"):
        return _remote(url, places.hosts)
    if not places.folders:
        raise ConfigError("video_url", url[:60], "paths are allowed only with --allow FOLDER; send a data URL")
    return _stored(url.removeprefix("file://"), places.folders, max_mb)


def _sent(data: str, setting: str, places: Places) -> Sent:
    assert places.incoming is not None, "a request that may send a video has a folder"
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise ConfigError(setting, f"{data[:20]}...", f"is not base64 ({error})") from error
    path = places.incoming / secrets.token_hex(8)
    path.write_bytes(content)
    return Sent(path)


def _remote(url: str, hosts: Sequence[str]) -> Remote:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError("video_url", url[:60], f"is not an address ({error})") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None or host not in hosts:
        rule = "nothing is fetched from other machines than --allow-host names, by http or https; send a data URL"
        raise ConfigError("video_url", url[:60], rule)
    return Remote(url)


def _stored(name: str, folders: Sequence[Path], max_mb: float) -> Stored:
    """The real path of a file below a folder; one message for outside and missing, so that nothing can be probed."""
    for root in (folder.resolve() for folder in folders):
        try:
            real = (root / name).resolve()
            inside = real.is_relative_to(root) and real.is_file()
        except (OSError, ValueError, RuntimeError):
            inside = False
        if inside:
            if real.stat().st_size > max_mb * 1e6:
                raise ConfigError("video_url", name, f"must be at most {max_mb:g} MB")
            return Stored(real, name)
    raise ConfigError("video_url", name, "is not a file in the allowed folder")
