"""What every request passes: the token, where it comes from, how often; and what every answer carries.

A page of another site may send requests to this machine. It cannot read the answers, and is refused by what browsers
say of it: its origin. The names by which this server is called are checked beside it (TrustedHostMiddleware).
"""

import hmac
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from xgenvideo.infer.serving.metrics import Metrics
from xgenvideo.infer.serving.refusal import TRY_LATER, Refusal
from xgenvideo.infer.serving.replies import refused

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Without a token: what holds nothing of a video. Files of the folder carry a key of their own.
OPEN = ("/", "/page.css", "/page.js", "/health")
MEDIA = "/media/"
ADDRESSES = 10_000
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Rate:
    """So many requests a minute from one address, all of a minute's at once if it was quiet before; 0: any number."""

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """Seconds until this address may ask again; 0 counts as one request."""
        if not self._per_minute:
            return 0.0
        most = max(1.0, self._per_minute)
        left, then = self._left.pop(address, (most, now))
        left = min(most, left + (now - then) * self._per_minute / 60)
        wait = 0.0 if left >= 1 else (1 - left) * 60 / self._per_minute
        self._left[address] = (left - (wait == 0), now)
        while len(self._left) > ADDRESSES:
            self._left.popitem(last=False)
        return wait


class Door:
    """The outermost layer of the application. `token` None: whoever reaches this machine's loopback may ask."""

    def __init__(self, app: "ASGIApp", token: str | None, per_minute: float, metrics: Metrics, paths: set[str]) -> None:
        self._app, self._token, self._metrics, self._paths = app, token, metrics, paths
        self._rate = Rate(per_minute)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def sending(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = with_headers(message["headers"])
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, sending)
            else:
                await refused(refusal)(scope, receive, sending)
        finally:
            endpoint = self._endpoint(scope["path"])
            self._metrics.requests.labels(endpoint, str(status)).inc()
            self._metrics.seconds.labels(endpoint).observe(time.perf_counter() - started)

    def _endpoint(self, path: str) -> str:
        """A name out of few, whatever is asked for: each becomes a time series."""
        if path in self._paths:
            return path
        return next((start for start in (MEDIA, "/v1/files/") if path.startswith(start)), "other")

    def _refusal(self, scope: "Scope") -> Refusal | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"]
        if self._token is not None and path not in OPEN and not path.startswith(MEDIA):
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.encode(), self._token.encode()):
                return Refusal(401, "this server needs its token: Authorization: Bearer TOKEN", "invalid_api_key")
        if scope["method"] in ("GET", "HEAD"):
            return None
        if is_foreign(headers):
            return Refusal(403, f"a page of {headers.get('origin')!r} may not speak for its visitor", "foreign_origin")
        wait = self._rate.wait((scope.get("client") or ("", 0))[0], time.monotonic())
        if wait:
            message = f"too many requests from this address; come back in {wait:.0f} s"
            return Refusal(429, message, "rate_limit_exceeded", TRY_LATER, retry_seconds=wait)
        return None


def is_foreign(headers: dict[str, str]) -> bool:
    """Whether a browser says that another site's page sends this; other clients say nothing."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def with_headers(headers: Any) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with ours, where it does not say otherwise itself."""
    own = {name.lower() for name, _ in headers}
    return [*headers, *((name, value) for name, value in HEADERS if name not in own)]
