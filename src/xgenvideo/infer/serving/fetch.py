"""Fetching a video from an allowed host: never from a private address, whatever the name resolves to, never redirected.

The address is checked after it was resolved, and the connection goes to that very address.
"""

import http.client
import threading
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from xgenvideo.data.decoders import Stopped
from xgenvideo.data.internet import ask, connect, is_public, pieces, port_of, resolve
from xgenvideo.errors import ConfigError

SECONDS = 10.0


def public_addresses(host: str, port: int) -> list[str]:
    """The addresses of `host`, all of which must be public. Raises ConfigError."""
    try:
        found = resolve(host, port)
    except OSError as error:
        raise ConfigError("video_url", host, f"cannot be resolved ({error})") from error
    if not found or not all(is_public(address) for address in found):
        raise ConfigError("video_url", host, "resolves to an address that is not public; nothing is fetched from it")
    return found


def fetch(url: str, to: Path, max_mb: float, stop: threading.Event) -> None:
    """Write what is at `url` to the file `to`. Raises ConfigError for anything but a whole file, Stopped."""
    parts = urlsplit(url)
    connection = _connection(parts)
    try:
        with ask(connection, parts) as answer:
            if answer.status != 200:
                rule = f"answered {answer.status}; redirects are not followed, give the address of the file itself"
                raise ConfigError("video_url", url[:60], rule)
            _write(pieces(answer), url, to, max_mb, stop)
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError("video_url", url[:60], f"cannot be fetched ({type(error).__name__}: {error})") from error
    finally:
        connection.close()


def _write(content: Iterable[bytes], url: str, to: Path, max_mb: float, stop: threading.Event) -> None:
    taken = 0
    with to.open("xb") as file:
        for piece in content:
            taken += len(piece)
            if taken > max_mb * 1e6:
                raise ConfigError("video_url", url[:60], f"must be at most {max_mb:g} MB")
            if stop.is_set():
                raise Stopped
            file.write(piece)


def _connection(parts: SplitResult) -> http.client.HTTPConnection:
    """A connection that talks to the checked address in the name of the host."""
    host = str(parts.hostname)
    addresses = public_addresses(host, port_of(parts))
    try:
        return connect(parts, addresses, SECONDS)
    except OSError as error:
        raise ConfigError("video_url", host, f"cannot be reached ({error})") from error
