"""Answering over HTTP on this machine, in the shape of OpenAI's chat completions. Run: xgv serve RELEASE.

There is no authentication, so it listens on loopback only and refuses requests that a web page could forge.
"""

import base64
import binascii
import json
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgenvideo.errors import ConfigError, MissingExtra, XGenVideoError
from xgenvideo.infer.release import NEW_TOKENS, Release

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_MB = 64.0
MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class Limits:
    """What a request may ask for: bodies and files of `max_mb` (10^6 bytes), files below `allow` (None: no paths)."""

    allow: Path | None = None
    max_mb: float = MAX_MB


@dataclass(frozen=True)
class Asked:
    """One request, read and checked. `video` is a path that is allowed, or bytes that were sent along."""

    video: Path | bytes
    prompt: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None


def serve(
    release: Release, host: str = "127.0.0.1", port: int = 8000, allow: Path | None = None, max_mb: float = MAX_MB
) -> None:
    """Serve until interrupted. Raises ConfigError for a host that is not loopback, MissingExtra without uvicorn."""
    if host not in LOOPBACK:
        raise ConfigError("host", host, "must be loopback: there is no authentication", LOOPBACK)
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra("uvicorn", "serve") from error
    uvicorn.run(create_app(release, Limits(allow, max_mb)), host=host, port=port, log_level="warning")


def create_app(release: Release, limits: Limits) -> "FastAPI":
    """The application: GET /health, POST /v1/chat/completions. Raises MissingExtra without fastapi."""
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse
        from starlette.concurrency import run_in_threadpool
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError as error:
        raise MissingExtra("fastapi", "serve") from error
    app = FastAPI(title="X-Gen-Video", openapi_url=None)
    # A page of another site that resolves its own name to 127.0.0.1 still sends that name.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    turn = threading.Lock()

    def health() -> dict[str, Any]:
        return {"status": "ok", "model": release.config.name, "identity": release.identity}

    async def complete(request: Request) -> JSONResponse:
        try:
            asked = read_request(await _body(request, limits), limits)
            text = await run_in_threadpool(answer, release, asked, turn)
        except XGenVideoError as error:
            return JSONResponse({"error": {"message": str(error), "type": type(error).__name__}}, status_code=400)
        return JSONResponse(completion(release, text))

    app.add_api_route("/health", health, methods=["GET"])
    app.add_api_route("/v1/chat/completions", complete, methods=["POST"], response_model=None)
    return app


async def _body(request: "Request", limits: Limits) -> Any:
    """The JSON of a request, read no further than the limit. Raises ConfigError."""
    # A form of a foreign page cannot send this type without asking first.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ConfigError("content-type", request.headers.get("content-type"), "must be application/json")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > limits.max_mb * 1e6:
            raise ConfigError("request", "too large", f"must be at most {limits.max_mb:g} MB")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError("request", "not JSON", f"must be a JSON object ({error})") from error


def read_request(body: Any, limits: Limits) -> Asked:
    """The last user message of a chat request: text parts, and one video. Raises ConfigError for what is not right."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise ConfigError("messages", type(body).__name__, "must be a list of messages in a JSON object")
    if body.get("stream"):
        raise ConfigError("stream", True, "is not offered; leave it out")
    users = [one for one in body["messages"] if isinstance(one, dict) and one.get("role") == "user"]
    content = users[-1].get("content") if users else None
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ConfigError("content", content, "of the last user message must be a list with one video part")
    texts = [str(part.get("text", "")) for part in content if part.get("type") == "text"]
    videos = [part["video_url"] for part in content if part.get("type") == "video_url" and "video_url" in part]
    if len(videos) != 1:
        raise ConfigError("content", f"{len(videos)} videos", "must have exactly one part of type video_url")
    url = videos[0].get("url") if isinstance(videos[0], dict) else videos[0]
    return Asked(
        read_video(url, limits),
        " ".join(texts).strip(),
        int(_number(body, "max_tokens", NEW_TOKENS, 1, MAX_NEW_TOKENS)),
        _number(body, "temperature", 0.0, 0.0, 10.0),
        _number(body, "top_p", 1.0, 1e-6, 1.0),
        None if body.get("seed") is None else int(_number(body, "seed", 0, 0, 2**63 - 1)),
    )


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number of the request. Raises ConfigError outside its range."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(name, value, f"must be a number from {low:g} to {high:g}")
    return value


def read_video(url: object, limits: Limits) -> Path | bytes:
    """A base64 data URL as bytes, or a path below `limits.allow` after all links are followed. Raises ConfigError."""
    if not isinstance(url, str):
        raise ConfigError("video_url", type(url).__name__, "must be a data URL or a path")
    if url.startswith("data:"):
        head, comma, data = url.partition(",")
        if not comma or not head.endswith(";base64"):
            raise ConfigError("video_url", head[:60], "a data URL must be base64: data:video/mp4;base64,...")
        try:
            return base64.b64decode(data, validate=True)
        except binascii.Error as error:
            raise ConfigError("video_url", head[:60], f"is not base64 ({error})") from error
    if "://" in url and not url.startswith("file://"):
        raise ConfigError("video_url", url[:60], "nothing is fetched from other machines; send a data URL or a path")
    if limits.allow is None:
        raise ConfigError("video_url", url[:60], "paths are allowed only with --allow FOLDER; send a data URL")
    return _allowed(Path(url.removeprefix("file://")), limits.allow.resolve(), limits.max_mb)


def _allowed(path: Path, root: Path, max_mb: float) -> Path:
    """The real path of a file below `root`; one message for outside and missing, so that nothing can be probed."""
    try:
        real = (root / path).resolve()
        inside = real.is_relative_to(root) and real.is_file()
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise ConfigError("video_url", str(path), "is not a file in the allowed folder")
    if real.stat().st_size > max_mb * 1e6:
        raise ConfigError("video_url", str(path), f"must be at most {max_mb:g} MB")
    return real


def answer(release: Release, asked: Asked, turn: threading.Lock) -> str:
    """Write the answer, one request at a time: the model uses all cores as it is."""
    with turn, tempfile.TemporaryDirectory(prefix="xgv-") as folder:
        path = asked.video if isinstance(asked.video, Path) else Path(folder) / "video"
        if isinstance(asked.video, bytes):
            path.write_bytes(asked.video)
        return release.generate(path, asked.prompt, asked.max_tokens, asked.temperature, asked.top_p, asked.seed)


def completion(release: Release, text: str) -> dict[str, Any]:
    """A text in the shape of a chat completion."""
    message = {"role": "assistant", "content": text}
    return {
        "object": "chat.completion",
        "created": int(time.time()),
        "model": release.config.name,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
