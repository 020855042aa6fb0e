"""Fetching a video from an allowed host: never from a private address, whatever the name resolves to, never redirected.

The address is checked after it was resolved, and the connection goes to that very address.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from xgenvideo.data.decoders import Stopped
from xgenvideo.errors import ConfigError

SECONDS = 10.0
PIECE = 2**18
# Prefixes that carry an IPv4 address inside: 64:ff9b::/96 (RFC 6052) and its local kind (RFC 8215).
_TRANSLATED = tuple(ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48"))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or any(ip in network for network in _TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast


def public_addresses(host: str, port: int) -> list[str]:
    """The addresses of `host`, all of which must be public. Raises ConfigError."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise ConfigError("video_url", host, f"cannot be resolved ({error})") from error
    if not found or not all(is_public(address) for address in found):
        raise ConfigError("video_url", host, "resolves to an address that is not public; nothing is fetched from it")
    return found


def fetch(url: str, to: Path, max_mb: float, stop: threading.Event) -> None:
    """Write what is at `url` to the file `to`. Raises ConfigError for anything but a whole file, Stopped."""
    parts = urlsplit(url)
    connection = _connection(parts)
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"accept": "video/*", "accept-encoding": "identity"})
        answer = connection.getresponse()
        if answer.status != 200:
            rule = f"answered {answer.status}; redirects are not followed, give the address of the file itself"
            raise ConfigError("video_url", url[:60], rule)
        taken = 0
        with to.open("xb") as file:
            while piece := answer.read1(PIECE):
                taken += len(piece)
                if taken > max_mb * 1e6:
                    raise ConfigError("video_url", url[:60], f"must be at most {max_mb:g} MB")
                if stop.is_set():
                    raise Stopped
                file.write(piece)
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError("video_url", url[:60], f"cannot be fetched ({type(error).__name__}: {error})") from error
    finally:
        connection.close()


def _connection(parts: SplitResult) -> http.client.HTTPConnection:
    """A connection that talks to the checked address in the name of the host."""
    host = str(parts.hostname)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    connection = http.client.HTTPConnection(host, port, timeout=SECONDS)
    problem = "no address"
    for address in public_addresses(host, port):
        try:
            plain = socket.create_connection((address, port), timeout=SECONDS)
            context = ssl.create_default_context()
            connection.sock = context.wrap_socket(plain, server_hostname=host) if secure else plain
            return connection
        except OSError as error:
            problem = str(error)
    raise ConfigError("video_url", host, f"cannot be reached ({problem})")
