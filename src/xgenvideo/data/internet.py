"""Connections to a checked address: what a host's name stands for is looked up once, judged, and connected to.

A name that resolves to a private address, or to another one the second time, leads nowhere.
"""

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Iterable, Iterator
from urllib.parse import SplitResult

PIECE_BYTES = 2**18
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


def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host. Raises OSError."""
    try:
        return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except UnicodeError as error:
        raise OSError(f"{host[:80]!r} is no name of a host") from error


def port_of(parts: SplitResult) -> int:
    """The port that a URL names, or its scheme's own."""
    return parts.port or (443 if parts.scheme == "https" else 80)


def connect(parts: SplitResult, addresses: Iterable[str], seconds: float) -> http.client.HTTPConnection:
    """A connection to the first of the addresses that answers, in the name of the URL's host. Raises OSError."""
    host = str(parts.hostname)
    port = port_of(parts)
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    problem = OSError("it has no address")
    for address in addresses:
        try:
            plain = socket.create_connection((address, port), timeout=seconds)
        except OSError as error:
            problem = error
            continue
        try:
            secure = parts.scheme == "https"
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host) if secure else plain
            return connection
        except OSError as error:
            plain.close()
            problem = error
    raise problem


def ask(connection: http.client.HTTPConnection, parts: SplitResult) -> http.client.HTTPResponse:
    """The answer to a GET of the URL, its content as it lies there. Raises OSError, HTTPException."""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection.request("GET", target, headers={"accept": "video/*", "accept-encoding": "identity"})
    return connection.getresponse()


def pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """The content as it comes. Raises OSError, and HTTPException when it ends before it is whole."""
    while piece := answer.read1(PIECE_BYTES):
        yield piece
    if answer.length:  # read1 takes a broken connection for the end
        raise http.client.IncompleteRead(b"", answer.length)
