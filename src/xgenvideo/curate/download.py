"""From a URL to a file: over HTTP by us, by yt-dlp, by a function that the user names, or out of an object store.

URLs of a listing are strangers' data: only hosts of the user's list are asked, and over HTTP only at public addresses,
looked up once for each hop and connected to as checked. What does not work out has a reason code.
"""

import http.client
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from xgenvideo.curate.pairs import RefusedError
from xgenvideo.curate.stores import open_store
from xgenvideo.data.internet import ask, connect, is_public, pieces, port_of, resolve
from xgenvideo.errors import ConfigError, DataError, MissingExtra, XGenVideoError

SOCKET_SECONDS, MOST_REDIRECTS, COPY_BYTES, LOOK_SECONDS = 20.0, 5, 2**20, 0.1
# What yt-dlp says when it is the network or a site's patience that fails, and not the video.
PASSING = re.compile(
    r"timed out|failed to resolve|not known|TransportError|temporary failure|unreachable|not a bot"
    r"|connection (refused|reset|aborted)|HTTP Error (408|425|429|5\d\d)|rate.?limit|try again later",
    re.IGNORECASE,
)

Span = tuple[float, float]  # seconds of a video
Addresses = Callable[[str, int], list[str]]
Fetch = Callable[[str, Path], None]  # from a URL to a file that is not there yet


@dataclass(frozen=True)
class Limits:
    """What a download may ask for: hosts ("*.example.com" for all below one), and how much."""

    hosts: tuple[str, ...]
    megabytes: float
    seconds: float


def check_host(url: str, hosts: tuple[str, ...]) -> SplitResult:
    """The parts of a URL whose host is on the list. Refuses (download_refused_host) all others."""
    try:
        parts = urlsplit(url)
        host, scheme, _ = (parts.hostname or "").rstrip(".").lower(), parts.scheme, parts.port
    except ValueError as error:
        raise RefusedError("download_refused_host", f"{url[:80]!r} is no URL") from error
    if scheme not in ("http", "https") or parts.username is not None or parts.password is not None:
        raise RefusedError("download_refused_host", f"{url[:80]!r} is no plain http or https URL")
    if not any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in hosts):
        raise RefusedError("download_refused_host", f"{host[:80]} is not in curate.download_hosts")
    return parts


def public_addresses(host: str, port: int, look_up: Addresses = resolve) -> list[str]:
    """The addresses of a host. Refuses (download_private_address) unless all are public. Raises OSError."""
    found = look_up(host, port)
    inner = [address for address in found if not is_public(address)]
    if inner:
        raise RefusedError("download_private_address", f"{host} is at {inner[0]}, which is not of the public internet")
    return found


def download_http(url: str, to: Path, limits: Limits, addresses: Addresses = public_addresses) -> None:
    """Write what is at a URL, or where it redirects to, to a file. Refuses with a reason code."""
    deadline = time.monotonic() + limits.seconds
    try:
        for _ in range(MOST_REDIRECTS + 1):
            parts = check_host(url, limits.hosts)
            host, seconds = str(parts.hostname), min(SOCKET_SECONDS, max(0.001, deadline - time.monotonic()))
            connection = connect(parts, addresses(host, port_of(parts)), seconds)
            # Also ends what sends a byte now and then, so that no read times out.
            watch = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, [connection.sock])
            watch.daemon = True
            watch.start()
            try:
                with ask(connection, parts) as answer:
                    if answer.status not in (301, 302, 303, 307, 308):
                        _take(answer, to, limits, deadline)
                        return
                    url = urljoin(url, answer.getheader("location", ""))
            finally:
                watch.cancel()
                connection.close()
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
    ) as error:  # ValueError: of a reader cut off in another thread
        if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
            raise RefusedError("download_timeout", f"more than {limits.seconds:g} s, or no answer") from error
        raise RefusedError("download_unreachable", f"{type(error).__name__}: {error}"[:200]) from error
    raise RefusedError("download_failed", f"more than {MOST_REDIRECTS} redirects")


def _cut(connected: socket.socket) -> None:
    with suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _take(answer: http.client.HTTPResponse, to: Path, limits: Limits, deadline: float) -> None:
    if answer.status != 200:
        passing = answer.status in (408, 425, 429) or answer.status >= 500
        raise RefusedError("download_unreachable" if passing else "download_failed", f"answered {answer.status}")
    with to.open("xb") as file:
        _copy(pieces(answer), file, limits, deadline, answer.length or 0)


def _copy(content: Any, file: IO[bytes], limits: Limits, deadline: float, announced: int) -> None:
    taken = 0
    if announced > limits.megabytes * 1e6:
        raise _too_large(limits)
    for piece in content:
        taken += len(piece)
        if taken > limits.megabytes * 1e6:
            raise _too_large(limits)
        _in_time(limits, deadline)
        try:
            file.write(piece)
        except OSError as error:
            raise DataError(f"{file.name}: cannot be written ({error}); make room and run again") from error
    _in_time(limits, deadline)  # a connection that was cut off looks like an end


def _in_time(limits: Limits, deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise RefusedError("download_timeout", f"more than curate.download_seconds = {limits.seconds:g}")


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError("download_too_large", f"more than curate.max_download_mb = {limits.megabytes:g}")


def download_object(url: str, to: Path, limits: Limits) -> None:
    """Write an object of a store, which the user has named, to a file. Refuses with a reason code; MissingExtra."""
    deadline = time.monotonic() + limits.seconds
    store, path = open_store(url)
    try:
        with store.open(path, "rb") as stream, to.open("xb") as file:
            _copy(iter(lambda: stream.read(COPY_BYTES), b""), file, limits, deadline, 0)
    except FileNotFoundError as error:
        raise RefusedError("missing_file", f"{url[:160]} is not there") from error
    except PermissionError as error:
        raise RefusedError("download_failed", f"{url[:80]}: may not be read ({error})"[:200]) from error
    except (RefusedError, XGenVideoError):
        raise
    except Exception as error:  # every store has errors of its own
        raise RefusedError("download_unreachable", f"{type(error).__name__}: {error}"[:200]) from error


def find_hook(name: str) -> Fetch:
    """The function of the user's that "module:function" names. Raises ConfigError."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        rule = f"cannot be imported ({error}); write module:function, the module on PYTHONPATH"
        raise ConfigError("curate.download", name, rule) from error
    if not callable(found):
        raise ConfigError("curate.download", name, "is no function of a URL and of the path to write to")
    hook: Fetch = found
    return hook


def download_hook(hook: Fetch, url: str, to: Path, limits: Limits) -> None:
    """Let the user's function write the file. Of what it raises an OSError is tried again by the next run, unless it
    says that there is no such file or that it may not be read.
    """
    check_host(url, limits.hosts)
    try:
        hook(url, to)
    except Exception as error:  # whatever the user's code raises
        passing = isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)
        reason = "download_unreachable" if passing else "download_failed"
        raise RefusedError(reason, f"{type(error).__name__}: {error}"[:200]) from error
    if not to.is_file():
        raise RefusedError("download_failed", "the function wrote no file")
    if to.stat().st_size > limits.megabytes * 1e6:
        raise _too_large(limits)


def find_ytdlp(sections: bool = False) -> str:
    """The path of yt-dlp. Raises MissingExtra, and ConfigError for sections where there is no ffmpeg to cut them."""
    found = shutil.which("yt-dlp")
    if found is None:
        raise MissingExtra("yt-dlp", "remote")
    if sections and shutil.which("ffmpeg") is None:
        rule = "needs the program ffmpeg, with which yt-dlp cuts; install it, or fetch whole videos (false)"
        raise ConfigError("curate.download_sections", sections, rule)
    return found


def download_ytdlp(
    url: str,
    folder: Path,
    spans: Sequence[Span],
    height: int,
    limits: Limits,
    addresses: Addresses = public_addresses,
) -> list[Path]:
    """Let yt-dlp fetch a video into an empty folder, whole, or only these spans of it; a file for each.

    It chooses the smallest picture of at least `height` lines. yt-dlp opens connections of its own, to where the site
    sends its player: the list of hosts and the look at addresses hold for the URL. Refuses with a reason code.
    """
    parts = check_host(url, limits.hosts)
    with suppress(OSError):  # behind a proxy no name can be looked up; otherwise yt-dlp says so
        addresses(str(parts.hostname), port_of(parts))
    command = [find_ytdlp(bool(spans)), "--ignore-config", "--no-playlist", "--no-cache-dir", "--no-progress"]
    command += ["--no-warnings", "--no-mtime", "--use-extractors", "default,-generic", "--retries", "3"]
    command += ["--socket-timeout", f"{SOCKET_SECONDS:g}", "--max-filesize", str(int(limits.megabytes * 1e6))]
    command += ["--format", "bv*/b", "--format-sort", f"+res:{height}", "--paths", str(folder)]
    for start, end in spans:
        command += ["--download-sections", f"*{start:.3f}-{end:.3f}"]
    name = "%(section_start).3f-%(section_end).3f.%(ext)s" if spans else "video.%(ext)s"
    command += ["--force-keyframes-at-cuts"] if spans else []
    _run([*command, "--output", name, "--", url], folder, limits)
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix not in (".part", ".ytdl")]
    if not spans and len(files) == 1:
        return files
    found = [[file for file in files if file.name.startswith(f"{start:.3f}-")] for start, end in spans]
    # The end of a span may be cut to the video's own.
    if not spans or not all(len(each) == 1 for each in found):
        raise RefusedError("download_failed", "yt-dlp wrote no file, or not the ones it was asked for")
    return [each[0] for each in found]


def _run(command: list[str], folder: Path, limits: Limits) -> None:
    """Run to its end, killed with all it has started when it takes too long or writes too much."""
    deadline = time.monotonic() + limits.seconds
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=folder, start_new_session=True
        )
        try:
            while process.poll() is None:
                _in_time(limits, deadline)
                if _bytes_in(folder) > limits.megabytes * 1e6:
                    raise _too_large(limits)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
                process.wait()
        said.seek(max(0, said.tell() - 4000))
        words = said.read().decode("utf-8", "replace").strip()
    if "No space left on device" in words:
        raise DataError(f"{folder}: cannot be written; make room and run again")
    if "larger than max-filesize" in words or _bytes_in(folder) > limits.megabytes * 1e6:
        raise _too_large(limits)
    if process.returncode:
        last = words.rpartition("\n")[2][:200]
        raise RefusedError("download_unreachable" if PASSING.search(words) else "download_failed", last)


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # renamed meanwhile
            total += path.stat().st_size
    return total
