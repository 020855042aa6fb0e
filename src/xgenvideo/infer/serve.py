"""Answering over HTTP, in the shapes of OpenAI's interface. Run: xgv serve RELEASE.

Without a token it listens on loopback only and refuses requests that a web page could forge.
"""

import os
import socket
from pathlib import Path

from xgenvideo.errors import ConfigError, MissingExtra
from xgenvideo.infer.release import Release
from xgenvideo.infer.serving.app import LOOPBACK, create_app
from xgenvideo.infer.serving.limits import Limits
from xgenvideo.infer.serving.sources import Places

TOKEN = "XGV_TOKEN"
SHORTEST_TOKEN = 16
# Beyond the queue, connections only wait to be told 503; beyond these, they are told it without a word.
CONNECTIONS = 1000


def serve(
    release: Release,
    host: str = "127.0.0.1",
    port: int = 8000,
    places: Places | None = None,
    index: Path | None = None,
    limits: Limits | None = None,
    token: str | None = None,
) -> None:
    """Serve until interrupted. Raises ConfigError for a host beyond loopback without a token, MissingExtra."""
    check_host(host, token)
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra("uvicorn", "serve") from error
    uvicorn.run(
        create_app(release, limits, places, index, token),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=10,
    )


def check_host(host: str, token: str | None) -> None:
    """Raises ConfigError for a host beyond loopback without a token."""
    if host not in LOOPBACK and token is None:
        raise ConfigError("host", host, f"beyond loopback a token is needed: --token-file FILE or {TOKEN}", LOOPBACK)


def check_port(host: str, port: int) -> None:
    """Raises ConfigError for a port that another process has, or that this one may not take."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise ConfigError("--port", port, f"cannot be taken on {host} ({error.strerror}); give another") from error


def read_token(file: Path | None) -> str | None:
    """The token in a file, or in the environment's XGV_TOKEN; None where neither is given. Raises ConfigError."""
    if file is None:
        token, setting = os.environ.get(TOKEN), TOKEN
    else:
        setting = "--token-file"
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(setting, str(file), f"cannot be read ({error})") from error
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        # The value itself is not shown.
        raise ConfigError(setting, f"{len(token)} characters", f"must be at least {SHORTEST_TOKEN} plain characters")
    return token
