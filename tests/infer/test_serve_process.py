"""`xgv serve` as a process: it answers, and a signal ends it and its children."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.infer.test_serve import by_url, chat, post
from tests.release.conftest import evaluation as release_evaluation
from tests.release.conftest import run as release_run
from xgenvideo.release.export import export

pytestmark = pytest.mark.slow
run, evaluation = release_run, release_evaluation


def children(pid: int) -> list[int]:
    """Whichever thread started them."""
    return [int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()]


@pytest.fixture(scope="module")
def released(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release on disk."""
    return export(run, tmp_path_factory.mktemp("served") / "release")


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_stop(
    released: Path, videos: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xgenvideo", "serve", str(released), "serve.decoders=1"]
    command += ["--port", str(port), "--index", str(videos)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        assert post(address, "/v1/chat/completions", chat(by_url("a.mp4"))).status_code == 200
        assert "X-Gen-Video" in httpx.get(address).text
        decoding = children(process.pid)
        assert decoding
        process.send_signal(stop)
        said = process.communicate(timeout=30)[1]
        assert "Traceback" not in said
        assert not [pid for pid in decoding if Path(f"/proc/{pid}").exists()]
    finally:
        process.kill()
        process.communicate()
