"""Answers in the shapes of OpenAI's interface, and how they are sent."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from xgenvideo.infer.cite import Cited
from xgenvideo.infer.embed import Vectors
from xgenvideo.infer.serving.refusal import Refusal
from xgenvideo.infer.serving.watch import File

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

SEND_SECONDS = 30.0
DONE = b"data: [DONE]\n\n"


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
    """A JSON answer."""
    from starlette.responses import JSONResponse

    return JSONResponse(body, status, headers)


def refused(refusal: Refusal) -> "Response":
    """A refusal as an answer."""
    return json_answer(refusal.body, refusal.status, refusal.headers)


class Events:
    """Server-sent events as an answer. `held` is let go when the last is sent, whatever happens."""

    def __init__(self, events: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        self._events, self._held = events, held

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Send them, each as it comes."""
        async with self._held:
            headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for event in self._events:
                # A client that does not read may not keep its place for ever.
                async with asyncio.timeout(SEND_SECONDS):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def event(values: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(values, ensure_ascii=False).encode() + b"\n\n"


def usage(prompt: int, written: int) -> dict[str, int]:
    """Tokens read and written."""
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def times(cited: Sequence[Cited]) -> list[dict[str, float]]:
    """Spans that speak for an answer."""
    return [{"start": one.start, "end": one.end, "nats": round(one.nats, 4)} for one in cited]


class Completion:
    """The parts of one chat completion: they share an id."""

    def __init__(self, model: str) -> None:
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, text: str, reason: str, counted: Mapping[str, int], more: Mapping[str, Any]) -> dict[str, Any]:
        """The answer in one piece."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
        return {**self._head, "object": "chat.completion", "choices": [choice], "usage": counted, **more}

    def piece(
        self, text: str | None, reason: str | None = None, first: bool = False, more: Mapping[str, Any] | None = None
    ) -> bytes:
        """A piece of the answer as an event."""
        delta = ({"role": "assistant"} if first else {}) | ({} if text is None else {"content": text})
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice], **(more or {})})

    def counted(self, counted: Mapping[str, int]) -> bytes:
        """The event with the usage, which follows the last piece when it was asked for."""
        return event({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": counted})


def vector(values: Vectors, as_base64: bool) -> Any:
    """A vector as a list of numbers, or as base64 of its float32, little-endian."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode() if as_base64 else values.tolist()


def file_object(file: File) -> dict[str, Any]:
    """An upload as OpenAI describes files, and what was seen of it."""
    seen = file.seen
    return {
        "id": file.id,
        "object": "file",
        "filename": file.name,
        "bytes": file.size,
        "created_at": file.created,
        "purpose": "user_data",
        "status": "processed",
        "seconds": round(seen.seconds, 3),
        "sampled_frames": seen.sampled,
        "windows": [list(span) for span in seen.spans],
    }


def frames(file: File) -> dict[str, Any]:
    """The sampled frames of an upload: times in seconds and small JPEGs."""
    pictures = [
        {"time": round(seconds, 3), "picture": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()}
        for seconds, jpeg in file.seen.pictures
    ]
    return {"object": "list", "data": pictures, "sampled_frames": file.seen.sampled, "every": file.seen.every}
