"""The server under many clients, slow ones, ones that leave, and broken or hostile videos."""

import asyncio
import json
import os
import socket
import struct
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.curate.conftest import broken as broken_media
from tests.infer.conftest import running
from tests.infer.test_serve import QUESTION, by_url, chat, data_url, error_of, post
from xgenvideo.data.decoders import Stopped
from xgenvideo.data.internet import is_public
from xgenvideo.errors import ConfigError
from xgenvideo.infer.generate import Draw, generate
from xgenvideo.infer.release import Release
from xgenvideo.infer.serving import fetch
from xgenvideo.infer.serving.door import Rate
from xgenvideo.infer.serving.engine import Ended, Engine, Job
from xgenvideo.infer.serving.limits import Limits
from xgenvideo.infer.serving.sources import Places

broken = broken_media
CLIENTS = 200


def memory_mb() -> float:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """The most that this process held meanwhile, MB."""
    peak, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield peak
    done.set()
    watcher.join()


async def ask_at_once(address: str, bodies: list[bytes]) -> list[httpx.Response]:
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120) as client:
        headers = {"content-type": "application/json"}
        requests = (client.post("/v1/chat/completions", content=body, headers=headers) for body in bodies)
        return list(await asyncio.gather(*requests))


def test_two_hundred_clients_at_once(release: Release, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {name: release.generate(videos / name, QUESTION, 8) for name in ("a.mp4", "b.mp4")}
    names = [("a.mp4", "b.mp4")[number % 2] for number in range(CLIENTS)]
    bodies = [json.dumps(chat(by_url(data_url(videos / name)))).encode() for name in names]
    with running(release, limits=Limits(queue=48, rate_per_minute=0)) as address:
        post(address, "/v1/chat/completions", chat(by_url(data_url(videos / "a.mp4"))))
        before, started = memory_mb(), time.perf_counter()
        with watched_memory() as peak:
            responses = asyncio.run(ask_at_once(address, bodies))
        taken, after = time.perf_counter() - started, memory_mb()
        found = Counter(response.status_code for response in responses)
        lines = httpx.get(address + "/metrics").text.splitlines()
    assert sum(found.values()) == CLIENTS
    assert set(found) <= {200, 503}
    assert found[200] >= 48
    for name, response in zip(names, responses, strict=True):
        if response.status_code == 200:
            assert response.json()["choices"][0]["message"]["content"] == expected[name]
        else:
            assert error_of(response)["code"] == "queue_full"
            assert int(response.headers["retry-after"]) >= 1
    batches = float(next(line for line in lines if line.startswith("xgv_batch_texts_count")).split()[1])
    with capsys.disabled():
        print(
            f"\n{CLIENTS} at once: {dict(found)} in {taken:.1f} s, {found[200] + 1} texts in {batches:.0f} batches, "
            f"{before:.0f} MB before, {peak[0]:.0f} MB at most, {after:.0f} MB after"
        )
    assert peak[0] - before < 300


def test_large_requests_wait_on_disk(
    release: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    clients, size = 12, 16_000_000
    head, tail = json.dumps(chat(by_url("data:video/mp4;base64,@"))).encode().split(b"@")

    async def body() -> AsyncIterator[bytes]:
        yield head
        for _ in range(size // 64_000):
            yield b"AAAA" * 16_000
        yield tail

    async def send(address: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=address, timeout=120) as client:
            headers = {"content-type": "application/json"}
            asks = (client.post("/v1/chat/completions", content=body(), headers=headers) for _ in range(clients))
            return list(await asyncio.gather(*asks))

    with running(release, limits=Limits(decoders=1)) as address, watched_memory() as peak:
        before = memory_mb()
        responses = asyncio.run(send(address))
    assert Counter(error_of(one)["code"] for one in responses) == {"unknown_container": clients}
    # Two are read at a time: body, text and video of each. All at once would be 192 MB of bodies alone.
    with capsys.disabled():
        print(f"{clients} x {size / 1e6:.0f} MB: {peak[0] - before:.0f} MB more")
    assert peak[0] - before < 300
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_one_batch_writes_what_each_would_write_alone(release: Release, videos: Path) -> None:
    latents = [release.latents(videos / name) for name in ("a.mp4", "b.mp4")]
    assert latents[0].shape == latents[1].shape
    prompts = [release.prompt_ids(text) for text in ("", QUESTION, "What is it?", "")]
    lengths, draws = [12, 5, 9, 1], [Draw(), Draw(1.0, 0.9, 3), Draw(), Draw()]
    said: list[list[Any]] = [[], [], [], []]
    ended = threading.Semaphore(0)
    turn, sizes = threading.Lock(), list[int]()
    engine = Engine(release, 8, turn, sizes.append)

    def listen(row: int, word: Any) -> None:
        said[row].append(word)
        if not isinstance(word, str):
            ended.release()

    with turn:  # nothing is written before all wait
        engine.submit(Job(prompts[0], latents[0], 2, Draw(), lambda word: None))
        while engine.waiting:
            time.sleep(0.001)
        for row in range(4):
            say = lambda word, row=row: listen(row, word)  # noqa: E731
            engine.submit(Job(prompts[row], latents[row % 2], lengths[row], draws[row], say))
    assert all(ended.acquire(timeout=30) for _ in range(4))
    engine.close()
    assert sizes == [1, 4]
    for row in range(4):
        draw = draws[row]
        wishes = (lengths[row], draw.temperature, draw.top_p, draw.seed)
        (ids,) = generate(release.model, release.tokenizer, latents[row % 2], [prompts[row]], *wishes)
        *pieces, end = said[row]
        assert "".join(pieces) == release.tokenizer.decode(ids)
        assert end == Ended("length" if len(ids) == lengths[row] else "stop", len(ids))


def test_who_has_gone_is_not_written_for(release: Release, videos: Path) -> None:
    engine, ended = Engine(release, 4, threading.Lock()), threading.Event()
    said: list[Any] = []

    def listen(word: Any) -> None:
        said.append(word)
        if isinstance(word, str):
            job.stop.set()
        else:
            ended.set()

    job = Job(release.prompt_ids(""), release.latents(videos / "a.mp4"), 1000, Draw(1.0, 1.0, 1), listen)
    engine.submit(job)
    assert ended.wait(30)
    engine.close()
    assert isinstance(said[-1], Stopped)
    assert len(said) < 100


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts that go on until someone stops them; the tokens written so far."""
    written: list[int] = []

    def steps(model: object, tokenizer: object, latents: object, prompts: list[Any], *rest: Any) -> Iterator[Any]:
        unwanted = rest[-1]
        while not all(unwanted(row) for row in range(len(prompts))):
            time.sleep(0.01)
            written.append(50)
            yield [(row, 50) for row in range(len(prompts)) if not unwanted(row)]

    monkeypatch.setattr("xgenvideo.infer.serving.engine.steps", steps)
    return written


def test_a_short_text_does_not_wait_for_a_long_one(endless: list[int], release: Release, videos: Path) -> None:
    engine, ended = Engine(release, 4, threading.Lock()), threading.Event()
    latents, said = release.latents(videos / "a.mp4"), list[Any]()
    long = Job(release.prompt_ids(""), latents, 10**6, Draw(), said.append)
    engine.submit(long)
    while not endless:
        time.sleep(0.001)
    engine.submit(
        Job(release.prompt_ids(""), latents, 3, Draw(), lambda word: None if isinstance(word, str) else ended.set())
    )
    assert ended.wait(10)
    assert all(isinstance(word, str) for word in said)
    engine.close()
    assert isinstance(said[-1], Stopped)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_text(endless: list[int], release: Release, videos: Path, stream: bool) -> None:
    with running(release, places=Places((videos,))) as address:
        body = json.dumps(chat(by_url("a.mp4"), max_tokens=1024, stream=stream)).encode()
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n"
            connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
            while len(endless) < 5:
                time.sleep(0.01)
        deadline = time.monotonic() + 10
        while b"xgv_queue_depth 0.0" not in httpx.get(address + "/metrics").content:
            assert time.monotonic() < deadline, "the request still has its place"
            time.sleep(0.02)
        count = len(endless)
        time.sleep(0.2)
        assert len(endless) <= count + 1


def test_a_request_has_so_much_time(endless: list[int], release: Release, videos: Path) -> None:
    limits = Limits(request_seconds=1.0, body_seconds=0.5)
    with running(release, places=Places((videos,)), limits=limits) as address:
        late = post(address, "/v1/chat/completions", chat(by_url("a.mp4"), max_tokens=1024))
        assert (late.status_code, error_of(late)["code"]) == (504, "timeout")
        events = post(address, "/v1/chat/completions", chat(by_url("a.mp4"), max_tokens=1024, stream=True)).text
        assert json.loads(events.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n"
            connection.sendall(head + b"content-type: application/json\r\n\r\n{")
            assert b" 408 " in connection.recv(1000).partition(b"\r\n")[0]


def test_a_full_house_and_a_hasty_address_are_told_when_to_come_back(
    endless: list[int], release: Release, videos: Path
) -> None:
    limits = Limits(queue=1, rate_per_minute=3, request_seconds=3.0)
    with running(release, places=Places((videos,)), limits=limits) as address:
        body = chat(by_url("a.mp4"), max_tokens=1024)
        first = threading.Thread(target=post, args=(address, "/v1/chat/completions", body))
        first.start()
        while len(endless) < 2:
            time.sleep(0.01)
        full = [post(address, "/v1/chat/completions", body) for _ in range(3)]
        assert [(one.status_code, error_of(one)["code"]) for one in full] == [
            (503, "queue_full"),
            (503, "queue_full"),
            (429, "rate_limit_exceeded"),
        ]
        assert all(int(one.headers["retry-after"]) >= 1 for one in full)
        assert httpx.get(address + "/health").status_code == 200
        first.join()


def test_a_rate_fills_again() -> None:
    rate = Rate(60)
    assert [rate.wait("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rate.wait("a", 0.0) == pytest.approx(1.0)
    assert rate.wait("b", 0.0) == 0
    assert rate.wait("a", 1.01) == 0
    assert rate.wait("a", 1.02) > 0.9
    assert Rate(0).wait("a", 0.0) == 0


def test_broken_and_hostile_videos_are_refused_with_their_reason(
    broken: tuple[Path, Path, dict[str, str | None]], release: Release
) -> None:
    root, outside, _ = broken
    reasons = {
        "empty.mp4": "empty_file",
        "truncated.mp4": "truncated",
        "text.mp4": "not_a_video",
        "concat.mp4": "not_a_video",
        "playlist.mp4": "not_a_video",
        "audio.mp4": "no_video_stream",
        "huge.avi": "too_large",
    }
    with running(release, places=Places((root,)), limits=Limits(max_seconds=30)) as address:
        for name, reason in reasons.items():
            for url in (name, data_url(root / name)):
                response = post(address, "/v1/chat/completions", chat(by_url(url)))
                assert (response.status_code, error_of(response)["code"]) == (422, reason), response.text
                assert "/tmp" not in response.text.replace(str(root), "")
            with (root / name).open("rb") as file:
                upload = httpx.post(address + "/v1/files", files={"file": (name, file)}, timeout=60)
            assert (upload.status_code, error_of(upload)["code"]) == (422, reason)
            assert error_of(upload)["message"].startswith(name)
        for name in ("link.mp4", "gone.mp4", ".", "../outside/secret.mp4", str(outside / "secret.mp4")):
            assert post(address, "/v1/chat/completions", chat(by_url(name))).status_code == 400
        for name in ("good.mp4", "variable.mp4", "rotated.mp4", "one_frame.mp4"):
            assert post(address, "/v1/chat/completions", chat(by_url(name))).status_code == 200


def test_videos_beyond_the_limits_are_refused(release: Release, videos: Path) -> None:
    for limits, reason in (
        (Limits(max_seconds=1.0), "too_long"),
        (Limits(max_pixels=32 * 32), "too_large"),
        (Limits(decoder_seconds=0.001), "decode_timeout"),
    ):
        with running(release, places=Places((videos,)), limits=limits) as address:
            response = post(address, "/v1/chat/completions", chat(by_url("a.mp4")))
            assert (response.status_code, error_of(response)["code"]) == (422, reason)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("172.16.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.fixture
def elsewhere(videos: Path) -> Iterator[int]:
    """The port of a plain server that has a video, a redirect, and an answer that never ends."""
    listening = socket.create_server(("127.0.0.1", 0))
    content = (videos / "a.mp4").read_bytes()
    answers = {
        "/a.mp4": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content,
        "/away": b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1/a.mp4\r\ncontent-length: 0\r\n\r\n",
        "/short": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (2 * len(content)) + content,
        "/endless": b"HTTP/1.1 200 OK\r\n\r\n" + struct.pack(">I", 7) * 2**20,
    }

    def answer() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                asked = connection.recv(65536).split()[1].decode()
                with socket.socket() if asked not in answers else connection as out:
                    try:
                        out.sendall(answers[asked])
                    except (OSError, KeyError):
                        continue

    thread = threading.Thread(target=answer)
    thread.start()
    yield listening.getsockname()[1]
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join(10)


def test_an_allowed_host_that_is_private_is_not_asked(
    elsewhere: int, release: Release, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places((), ("localhost", "video.example"))
    url = f"http://localhost:{elsewhere}/a.mp4"
    with running(release, places=places, limits=Limits(max_mb=1.0)) as address:
        refused = post(address, "/v1/chat/completions", chat(by_url(url)))
        assert "not public" in error_of(refused)["message"]
        assert "not an address" in post(address, "/v1/chat/completions", chat(by_url("http://[::1"))).text
        for other in ("http://a.example/a.mp4", "ftp://localhost/a.mp4", "http://user@localhost/a.mp4"):
            assert "--allow-host" in post(address, "/v1/chat/completions", chat(by_url(other))).text
        # As if loopback were public: the rest of the way.
        monkeypatch.setattr(fetch, "public_addresses", lambda host, port: ["127.0.0.1"])
        url = f"http://video.example:{elsewhere}"
        got = post(address, "/v1/chat/completions", chat(by_url(f"{url}/a.mp4")))
        assert got.status_code == 200, got.text
        expected = release.generate(videos / "a.mp4", QUESTION, 8)
        assert got.json()["choices"][0]["message"]["content"] == expected
        assert "redirects are not followed" in post(address, "/v1/chat/completions", chat(by_url(f"{url}/away"))).text
        assert "cannot be fetched" in post(address, "/v1/chat/completions", chat(by_url(f"{url}/short"))).text
        assert "at most 1 MB" in post(address, "/v1/chat/completions", chat(by_url(f"{url}/endless"))).text
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="cannot be resolved"):
        fetch.public_addresses("no-such-name.invalid", 80)
