"""What the server takes from strangers: each limit a setting, changed with serve.field=value."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from xgenvideo.config.read import from_dict
from xgenvideo.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bodies and files of `max_mb` (10^6 bytes), videos of `max_seconds` and `max_pixels` a frame (64 x 64 to 8192 x
    8192), answers of `max_tokens`.

    `decoders`: processes that read videos, each with `decoder_mb` of address space and `decoder_seconds` of processor
    time a video. `batch`: texts written together. `queue`: requests in the house at once, whatever they wait for; the
    next is told 503. `rate_per_minute`: requests of one address, 0 for any number; the next is told 429.
    `body_seconds`: for sending a request; `request_seconds`: for answering it. `files`, `files_mb`: watched uploads
    that are remembered; the one not used for longest goes first.
    """

    max_mb: float = 64.0
    max_seconds: float = 3600.0
    max_pixels: int = 4096 * 2304
    max_tokens: int = 1024
    decoders: int = 2
    decoder_mb: int = 3072
    decoder_seconds: float = 120.0
    batch: int = 16
    queue: int = 64
    rate_per_minute: float = 600.0
    body_seconds: float = 60.0
    request_seconds: float = 120.0
    files: int = 64
    files_mb: float = 1024.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 0 or (value == 0 and field.name != "rate_per_minute"):
                raise ConfigError(f"serve.{field.name}", value, "must be above 0")


def limits_from(assignments: Sequence[str]) -> Limits:
    """The defaults with `serve.field=value` overrides. Raises ConfigError naming the setting and the valid ones."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        field = name.removeprefix("serve.")
        if not equals or field == name:
            raise ConfigError(name, text, "a limit of the server is written serve.field=value")
        try:
            values[field] = json.loads(text)
        except ValueError as error:
            raise ConfigError(name, text, "must be a number") from error
    limits: Limits = from_dict(values, Limits, "serve.")
    return limits
