"""The endpoints of `xgv serve`: read, check, let the service work, and answer in OpenAI's shapes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from xgenvideo.data.decoders import Stopped
from xgenvideo.errors import MissingExtra, XGenVideoError
from xgenvideo.infer.release import Release
from xgenvideo.infer.serving import replies
from xgenvideo.infer.serving.ask import Chat, json_object, read_chat, read_embed, read_find
from xgenvideo.infer.serving.attention import Attention
from xgenvideo.infer.serving.door import Door
from xgenvideo.infer.serving.engine import Ended
from xgenvideo.infer.serving.limits import Limits
from xgenvideo.infer.serving.refusal import NOT_HERE, Refusal, refusal_of
from xgenvideo.infer.serving.service import Received, Service
from xgenvideo.infer.serving.sources import Places, read_url
from xgenvideo.infer.serving.watch import Seen
from xgenvideo.infer.serving.bodies import read_body, read_upload

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

LOOPBACK = ("127.0.0.1", "::1", "localhost")
PAGE = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
