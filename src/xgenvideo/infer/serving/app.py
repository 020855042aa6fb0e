"""The endpoints of `xgv serve`: read, check, let the service work, and answer in OpenAI's shapes."""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, nullcontext
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from xgenvideo.data.decoders import Stopped
from xgenvideo.errors import MissingExtra, XGenVideoError
from xgenvideo.infer.release import Release
from xgenvideo.infer.serving import replies
from xgenvideo.infer.serving.ask import Chat, Embed, json_object, read_chat, read_embed, read_find
from xgenvideo.infer.serving.attention import Attention
from xgenvideo.infer.serving.bodies import MULTIPART, announced, kind_of, read_body, read_upload
from xgenvideo.infer.serving.door import MEDIA, OPEN, Door
from xgenvideo.infer.serving.engine import Ended
from xgenvideo.infer.serving.limits import Limits
from xgenvideo.infer.serving.refusal import NOT_HERE, Refusal, refusal_of
from xgenvideo.infer.serving.service import Received, Service
from xgenvideo.infer.serving.sources import Places, Source, read_url
from xgenvideo.infer.serving.watch import File, Seen

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PAGE = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css")}
PAGE["/page.js"] = ("page.js", "text/javascript")
# Larger bodies hold a video as text and are read by few at a time, so that memory stays bounded.
SMALL_BODY = 1_000_000
READERS = 2
Read = TypeVar("Read")


def create_app(
    release: Release,
    limits: Limits | None = None,
    places: Places | None = None,
    index: Path | None = None,
    token: str | None = None,
) -> "Starlette":
    """The application. With `index`, that folder is searched and its videos may be asked about.

    Without `token` it answers only to the names of this machine's loopback. Raises MissingExtra without starlette.
    """
    try:
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError as error:
        raise MissingExtra("starlette", "serve") from error
    limits, places = limits or Limits(), places or Places()
    if index is not None:
        places = Places((*places.folders, index), places.hosts)
    service = Service(release, limits, places, index)
    endpoints = Endpoints(service)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with closing(service):
            yield

    # A page of another site that resolves its own name to 127.0.0.1 still sends that name; it has no token.
    hosts = [*LOOPBACK, "[::1]"] if token is None else ["*"]
    paths = {*OPEN, *endpoints.paths}
    middleware = [
        Middleware(Door, token=token, per_minute=limits.rate_per_minute, metrics=service.metrics, paths=paths),
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
    ]
    handlers = {XGenVideoError: _explain, Refusal: _explain, 404: _explain, 405: _explain, Exception: _explain}
    return Starlette(routes=endpoints.routes(), middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


def _explain(request: "Request", error: Exception) -> "Response":
    """Every error in one shape; of our own bugs no more than that there was one, the log has the rest."""
    if isinstance(error, Refusal):
        return replies.refused(error)
    if isinstance(error, XGenVideoError):
        return replies.refused(refusal_of(error))
    status = getattr(error, "status_code", 500)
    if status == 500:
        return replies.refused(
            Refusal(500, "the server has failed; its log says how", "internal_error", "server_error")
        )
    message = f"{request.method} {request.url.path} is not offered here"
    return replies.refused(Refusal(status, message, "unknown_url", NOT_HERE))


class Endpoints:
    """What each address does."""

    def __init__(self, service: Service) -> None:
        self._service, self._limits, self._places = service, service.limits, service.places
        self._model = service.release.config.name
        self._readers = asyncio.Semaphore(READERS)
        self._started = int(time.time())
        page = resources.files(__package__) / "page"
        self._page = {path: ((page / name).read_bytes(), kind) for path, (name, kind) in PAGE.items()}
        self._table: tuple[tuple[str, str, Callable[[Request], Any]], ...] = (
            ("GET", "/health", self.health),
            ("GET", "/metrics", self.metrics),
            ("GET", "/v1/models", self.models),
            ("POST", "/v1/chat/completions", self.chat),
            ("POST", "/v1/embeddings", self.embeddings),
            ("POST", "/v1/search", self.search),
            ("POST", "/v1/files", self.upload),
            ("GET", "/v1/files/{id}", self.file),
            ("DELETE", "/v1/files/{id}", self.forget),
            ("GET", "/v1/files/{id}/frames", self.frames),
            ("GET", MEDIA + "{name:path}", self.media),
            *(("GET", path, self.page) for path in PAGE),
        )

    @property
    def paths(self) -> set[str]:
        """The addresses that have no part to fill in."""
        return {path for _, path, _ in self._table if "{" not in path}

    def routes(self) -> list[Any]:
        """As Starlette takes them."""
        from starlette.routing import Route

        return [Route(path, endpoint, methods=[method]) for method, path, endpoint in self._table]

    async def page(self, request: "Request") -> "Response":
        """The page and what belongs to it."""
        from starlette.responses import Response

        content, kind = self._page[request.url.path]
        return Response(content, media_type=kind)

    async def health(self, request: "Request") -> "Response":
        """That it lives, and what it can do."""
        release, folder = self._service.release, self._service.folder
        return replies.json_answer(
            {
                "status": "ok",
                "model": self._model,
                "identity": release.identity,
                "search": folder is not None,
                "indexed_videos": None if folder is None else folder.videos,
                "max_mb": self._limits.max_mb,
            }
        )

    async def metrics(self, request: "Request") -> "Response":
        """For Prometheus."""
        from starlette.responses import Response

        return Response(self._service.metrics.text, media_type="text/plain; version=0.0.4")

    async def models(self, request: "Request") -> "Response":
        """The one model."""
        about = {"id": self._model, "object": "model", "created": self._started, "owned_by": "xgenvideo"}
        return replies.json_answer({"object": "list", "data": [about]})

    async def chat(self, request: "Request") -> Any:
        """An answer about one video, whole or as it is written."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._service.admitted())
            places = self._places_of(stack)
            asked = await self._read(request, read_chat, self._model, places, self._limits)
            ids = self._service.release.prompt_ids(asked.prompt)
            attention = await stack.enter_async_context(Attention(request, self._limits.request_seconds))
            try:
                seen = await self._service.see(asked.video, attention.stop)
                seen = seen if asked.span is None else seen.part(*asked.span)
                if asked.stream:
                    events = self._stream(asked, ids, seen, attention)
                    return replies.Events(events, stack.pop_all())
                return await self._whole(asked, ids, seen, attention)
            except Stopped:
                raise attention.refusal from None

    async def _whole(self, asked: Chat, ids: list[int], seen: Seen, attention: Attention) -> "Response":
        text, ended = "", Ended("stop", 0)
        async for word in self._service.write(seen, ids, asked.max_tokens, asked.draw, attention.stop):
            if isinstance(word, Ended):
                ended = word
            else:
                text += word
        more = await self._times(asked, seen, text.strip())
        counted = replies.usage(len(ids), ended.tokens)
        return replies.json_answer(replies.Completion(self._model).whole(text.strip(), ended.reason, counted, more))

    async def _times(self, asked: Chat, seen: Seen, text: str) -> dict[str, Any]:
        """The spans that speak for the answer, where they were asked for."""
        return {"times": replies.times(await self._service.cite(seen, asked.prompt, text))} if asked.times else {}

    async def _stream(self, asked: Chat, ids: list[int], seen: Seen, attention: Attention) -> AsyncIterator[bytes]:
        """The events of an answer; what goes wrong after the first is an event too, as the status is sent."""
        completion, text = replies.Completion(self._model), ""
        try:
            yield completion.piece("", first=True)
            async for word in self._service.write(seen, ids, asked.max_tokens, asked.draw, attention.stop):
                if isinstance(word, Ended):
                    more = await self._times(asked, seen, text.strip())
                    yield completion.piece(None, word.reason, more=more)
                    if asked.usage:
                        yield completion.counted(replies.usage(len(ids), word.tokens))
                else:
                    text += word
                    yield completion.piece(word)
            yield replies.DONE
        except Stopped:
            yield replies.event(attention.refusal.body)

    async def embeddings(self, request: "Request") -> "Response":
        """Unit vectors of texts and videos, comparable by their inner product."""
        async with AsyncExitStack() as stack:
            stack.enter_context(self._service.admitted())
            places = self._places_of(stack)
            asked = await self._read(request, read_embed, self._model, places, self._limits)
            attention = await stack.enter_async_context(Attention(request, self._limits.request_seconds))
            try:
                return await self._embed(asked, attention)
            except Stopped:
                raise attention.refusal from None

    async def _embed(self, asked: Embed, attention: Attention) -> "Response":
        service, rows, read = self._service, list[dict[str, Any]](), 0
        for number, given in enumerate(asked.inputs):
            if attention.stop.is_set():
                raise Stopped
            row: dict[str, Any] = {"object": "embedding", "index": number}
            if isinstance(given, str):
                read += len(service.release.tokenizer.encode(given))
                row["embedding"] = replies.vector(await service.embed_text(given), asked.base64)
            else:
                seen = await service.see(given, attention.stop)
                row["embedding"] = replies.vector(seen.vector, asked.base64)
                row["windows"] = [
                    {"start": start, "end": end, "embedding": replies.vector(own, asked.base64)}
                    for (start, end), own in zip(seen.spans, seen.vectors, strict=True)
                ]
            rows.append(row)
        usage = {"prompt_tokens": read, "total_tokens": read}
        return replies.json_answer({"object": "list", "data": rows, "model": self._model, "usage": usage})

    async def search(self, request: "Request") -> "Response":
        """Clips of the folder that fit a text, best first."""
        folder = self._service.folder
        if folder is None:
            raise Refusal(404, "no folder is searched here; start the server with --index FOLDER", "no_index", NOT_HERE)
        with self._service.admitted():
            asked = await self._read(request, read_find)
            vector = await self._service.embed_text(asked.query)
            hits = await asyncio.to_thread(folder.find, vector, asked.top)
        found = [
            {
                "video": hit.video.as_posix(),
                "start": hit.start,
                "end": hit.end,
                "score": round(hit.score, 4),
                "media": f"{MEDIA}{quote(hit.video.as_posix())}?key={folder.key(hit.video.as_posix())}",
            }
            for hit in hits
        ]
        return replies.json_answer({"object": "list", "data": found, "indexed_videos": folder.videos})

    async def media(self, request: "Request") -> "Response":
        """A video that a search has found, in ranges as a player asks for them."""
        from starlette.responses import FileResponse

        folder, name = self._service.folder, request.path_params["name"]
        path = None if folder is None else folder.file(name, request.query_params.get("key", ""))
        if path is None:
            raise Refusal(404, "no such video, or not with this key; search again", "file_not_found", NOT_HERE)
        return FileResponse(path)

    async def upload(self, request: "Request") -> "Response":
        """Watch a video once, to be asked about by its id: a form with a `file`, or JSON with a `url`."""
        source: Received | Source
        async with AsyncExitStack() as stack:
            stack.enter_context(self._service.admitted())
            if kind_of(request) == MULTIPART:
                file = await stack.enter_async_context(read_upload(request, self._limits))
                name, size = file.filename or "video", file.size or 0
                source = Received(file.file, name)
            else:
                source = await self._read(request, self._url, self._places_of(stack))
                name, size = "video", 0
            attention = await stack.enter_async_context(Attention(request, self._limits.request_seconds))
            try:
                seen = await self._service.see(source, attention.stop, pictures=True)
            except Stopped:
                raise attention.refusal from None
            return replies.json_answer(replies.file_object(self._service.library.add(name, size, seen)))

    def _url(self, content: bytearray, places: Places) -> Source:
        return read_url(json_object(content).get("url"), places, self._limits.max_mb)

    def _places_of(self, stack: AsyncExitStack) -> Places:
        """What a request may open, with a folder of its own until it is answered."""
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="xgv-"))
        return replace(self._places, incoming=Path(folder))

    def _find(self, request: "Request") -> File:
        file = self._service.library.find(request.path_params["id"])
        if file is None:
            raise Refusal(404, "no such file here; upload it again", "file_not_found", NOT_HERE, "file_id")
        return file

    async def file(self, request: "Request") -> "Response":
        """What is known of an upload."""
        return replies.json_answer(replies.file_object(self._find(request)))

    async def frames(self, request: "Request") -> "Response":
        """The frames that were sampled from an upload, with their times."""
        return replies.json_answer(replies.frames(self._find(request)))

    async def forget(self, request: "Request") -> "Response":
        """Remove an upload."""
        identity = self._find(request).id
        self._service.library.forget(identity)
        return replies.json_answer({"id": identity, "object": "file", "deleted": True})

    async def _read(self, request: "Request", read: Callable[..., Read], *arguments: Any) -> Read:
        """A JSON body as what `read` makes of it, large ones few at a time."""
        large = (announced(request) or SMALL_BODY + 1) > SMALL_BODY
        async with self._readers if large else nullcontext():
            content = await read_body(request, self._limits)
            return await asyncio.to_thread(read, content, *arguments)
