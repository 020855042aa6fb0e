"""Reading what is asked: JSON bodies to checked requests. Whatever the model cannot do is refused, not ignored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xgenvideo.errors import ConfigError
from xgenvideo.infer.generate import Draw
from xgenvideo.infer.release import NEW_TOKENS
from xgenvideo.infer.serving.limits import Limits
from xgenvideo.infer.serving.refusal import NOT_HERE, Refusal
from xgenvideo.infer.serving.sources import FORMS, Places, Source, video_of

GREEDY = Draw()
MOST_INPUTS = 256
MOST_VIDEOS = 8
MOST_HITS = 100
# Settings of OpenAI's that would change the answer, and the values that ask for nothing.
NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "stop": (None, [], ""),
    "tools": (None, []),
    "functions": (None, []),
    "logprobs": (None, False),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
}


@dataclass(frozen=True)
class Chat:
    """One question about one video, or about the piece of it that fits `span` best, in seconds.

    `times`: also the spans that speak for the answer; `usage`: count in the stream.
    """

    video: Source
    prompt: str
    max_tokens: int
    draw: Draw
    stream: bool
    usage: bool
    times: bool
    span: tuple[float, float] | None


@dataclass(frozen=True)
class Embed:
    """Texts and videos to embed, in order; `base64`: as bytes of float32, little-endian, instead of lists."""

    inputs: tuple[str | Source, ...]
    base64: bool


@dataclass(frozen=True)
class Find:
    """A text to look for in the folder, and how many clips to name."""

    query: str
    top: int


def json_object(content: bytes | bytearray) -> dict[str, Any]:
    """A body as a JSON object. Raises ConfigError."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError("request", "not JSON", f"must be a JSON object ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError("request", type(values).__name__, "must be a JSON object")
    return values


def read_chat(content: bytes | bytearray, model: str, places: Places, limits: Limits) -> Chat:
    """The one video of a chat, and the text of its last user message: the model was not taught to converse.

    Raises ConfigError for what is not right, Refusal for another model.
    """
    body = json_object(content)
    _check_model(body, model)
    for name, nothing in NOT_OFFERED.items():
        if body.get(name) not in nothing:
            raise ConfigError(name, body[name], "is not offered; leave it out")
    parts = _user_parts(body.get("messages"))
    videos = [found for part in parts for one in part if (found := video_of(one, places, limits.max_mb)) is not None]
    if len(videos) != 1:
        raise ConfigError("messages", f"{len(videos)} videos", "must have exactly one part with a video", FORMS)
    texts = [_text("text", one.get("text")) for one in parts[-1] if one.get("type") == "text"]
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    temperature = _number(body, "temperature", 0.0, 0.0, 10.0)
    top_p = _number(body, "top_p", 1.0, 1e-6, 1.0)
    seed = None if body.get("seed") is None else int(_number(body, "seed", 0, 0, 2**63 - 1))
    options = body.get("stream_options") or {}
    return Chat(
        videos[0],
        " ".join(texts).strip(),
        int(_number(body, name, NEW_TOKENS, 1, limits.max_tokens)),
        Draw(temperature, top_p, seed) if temperature else GREEDY,
        bool(body.get("stream")),
        isinstance(options, dict) and bool(options.get("include_usage")),
        bool(body.get("times")),
        _span(body),
    )


def _span(body: Mapping[str, Any]) -> tuple[float, float] | None:
    """A start and an end in seconds, if they are asked for. Raises ConfigError."""
    given = body.get("span")
    if given is None:
        return None
    numbers = isinstance(given, list) and all(type(one) in (int, float) for one in given)
    if not numbers or len(given) != 2:
        raise ConfigError("span", given, "must be a list of two numbers, start and end in seconds")
    return float(given[0]), float(given[1])


def _user_parts(messages: Any) -> list[list[dict[str, Any]]]:
    """The content parts of each user message."""
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise ConfigError("messages", type(messages).__name__, "must be a list of messages")
    parts: list[list[dict[str, Any]]] = []
    for content in (one.get("content") for one in messages if one.get("role") == "user"):
        listed = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(listed, list) or not all(isinstance(part, dict) for part in listed):
            raise ConfigError("content", type(content).__name__, "must be a text or a list of content parts")
        unknown = [part.get("type") for part in listed if part.get("type") not in ("text", *FORMS)]
        if unknown:
            raise ConfigError("content", unknown[0], "is no type of part that this reads", ("text", *FORMS))
        parts.append(listed)
    if not parts:
        raise ConfigError("messages", "no user message", "must have one with a video")
    return parts


def read_embed(content: bytes | bytearray, model: str, places: Places, limits: Limits) -> Embed:
    """A text, or a list of texts and content parts with a video. Raises ConfigError, Refusal."""
    body = json_object(content)
    _check_model(body, model)
    given = body.get("input")
    listed = given if isinstance(given, list) else [given]
    if not 0 < len(listed) <= MOST_INPUTS:
        raise ConfigError("input", f"{len(listed)} entries", f"must be 1 to {MOST_INPUTS} texts or videos")
    inputs = [_text("input", one) if isinstance(one, str) else _video(one, places, limits.max_mb) for one in listed]
    if any(isinstance(one, str) and not one.strip() for one in inputs):
        raise ConfigError("input", "", "must not be an empty text")
    if sum(not isinstance(one, str) for one in inputs) > MOST_VIDEOS:
        raise ConfigError("input", f"more than {MOST_VIDEOS} videos", f"must be at most {MOST_VIDEOS} in one request")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise ConfigError("encoding_format", body["encoding_format"], "no such format", ("float", "base64"))
    if body.get("dimensions") is not None:
        raise ConfigError("dimensions", body["dimensions"], "is not offered; leave it out")
    return Embed(tuple(inputs), body.get("encoding_format") == "base64")


def _video(part: Any, places: Places, max_mb: float) -> Source:
    found = video_of(part, places, max_mb) if isinstance(part, dict) else None
    if found is None:
        raise ConfigError("input", type(part).__name__, "must be a text, or a content part with a video", FORMS)
    return found


def read_find(content: bytes | bytearray) -> Find:
    """A search in the folder. Raises ConfigError."""
    body = json_object(content)
    query = _text("query", body.get("query"))
    if not query.strip():
        raise ConfigError("query", query, "must say what to look for")
    return Find(query, int(_number(body, "top", 5, 1, MOST_HITS)))


def _text(name: str, value: Any) -> str:
    """A text that can be written as UTF-8: JSON may hold halves of letters. Raises ConfigError."""
    if not isinstance(value, str):
        raise ConfigError(name, type(value).__name__, "must be a text")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(name, value[:60], "must be whole letters of Unicode")
    return value


def _check_model(body: Mapping[str, Any], model: str) -> None:
    if body.get("model") not in (None, model):
        message = f"the model {body['model']!r} is not served here; {model!r} is"
        raise Refusal(404, message, "model_not_found", NOT_HERE, "model")


def _number(body: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    """A number of the request. Raises ConfigError outside its range."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(name, value, f"must be a number from {low:g} to {high:g}")
    return value
