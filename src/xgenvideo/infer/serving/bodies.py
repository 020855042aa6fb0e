"""Reading the bodies of requests, no further than the limit and no longer than the time for it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from xgenvideo.infer.serving.limits import Limits
from xgenvideo.infer.serving.refusal import Refusal

if TYPE_CHECKING:
    from starlette.datastructures import UploadFile
    from starlette.requests import Request

MULTIPART = "multipart/form-data"
# Parts of a form beside the file.
MOST_FIELDS = 8


def kind_of(request: "Request") -> str:
    """The type of a body, without its parameters."""
    return str(request.headers.get("content-type", "")).partition(";")[0].strip().lower()


def announced(request: "Request") -> int | None:
    """How many bytes the request says that it has."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


async def read_body(request: "Request", limits: Limits) -> bytearray:
    """A JSON body. Raises Refusal: 415 another type, 413 too large, 408 too slow."""
    # A form of a foreign page cannot send this type without asking first.
    if kind_of(request) != "application/json":
        raise Refusal(415, "content-type must be application/json", "wrong_content_type")
    content = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in pieces(request, limits):
                content += piece
    except TimeoutError as error:
        raise _too_slow(limits) from error
    return content


@asynccontextmanager
async def read_upload(request: "Request", limits: Limits) -> AsyncIterator["UploadFile"]:
    """The part `file` of a form, on disk where it is large, until the context ends. Raises Refusal as
    `read_body`, and for what is no form.
    """
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    parser = MultiPartParser(request.headers, pieces(request, limits), max_files=1, max_fields=MOST_FIELDS)
    try:
        async with asyncio.timeout(limits.body_seconds):
            form = await parser.parse()
    except TimeoutError as error:
        raise _too_slow(limits) from error
    except (MultiPartException, KeyError) as error:
        raise Refusal(400, f"the form cannot be read ({error})", "invalid_form") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refusal(400, "the form must have a part `file` with a file name", "invalid_form", param="file")
        yield file
    finally:
        await form.close()


async def pieces(request: "Request", limits: Limits) -> AsyncGenerator[bytes, None]:
    """A body as it comes. Raises Refusal for one that is too large, as soon as that is known."""
    from starlette.requests import ClientDisconnect

    taken = 0
    if (announced(request) or 0) > limits.max_mb * 1e6:
        raise _too_large(limits)
    try:
        async for piece in request.stream():
            taken += len(piece)
            if taken > limits.max_mb * 1e6:
                raise _too_large(limits)
            yield piece
    except ClientDisconnect as error:
        raise Refusal(499, "the client has gone", "client_gone") from error


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"the request must be at most {limits.max_mb:g} MB (serve.max_mb)", "request_too_large")


def _too_slow(limits: Limits) -> Refusal:
    return Refusal(408, f"the request must be sent within {limits.body_seconds:g} s", "request_too_slow")
