"""Whether anybody still waits for an answer: a client that left, or waited too long, stops all work for it."""

import asyncio
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from xgenvideo.infer.serving.refusal import TRY_LATER, Refusal

if TYPE_CHECKING:
    from starlette.requests import Request

# nginx's number for a client that closed the connection; nobody reads it but the metrics.
GONE = 499


class Attention:
    """Entered once a request's body is read; `stop` is set when its client leaves, when time is up, and at the end."""

    def __init__(self, request: "Request", seconds: float) -> None:
        self.stop = threading.Event()
        self._request, self._seconds, self._late = request, seconds, False

    async def __aenter__(self) -> "Attention":
        self._listening = asyncio.create_task(self._listen())
        self._alarm = asyncio.get_running_loop().call_later(self._seconds, self._too_late)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self._alarm.cancel()
        self._listening.cancel()

    @property
    def refusal(self) -> Refusal:
        """What to say once it has stopped."""
        if self._late:
            message = f"not answered within {self._seconds:g} s (serve.request_seconds)"
            return Refusal(504, message, "timeout", TRY_LATER)
        return Refusal(GONE, "the client has gone", "client_gone")

    async def _listen(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.stop.set()

    def _too_late(self) -> None:
        self._late = True
        self.stop.set()
