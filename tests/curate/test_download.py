"""One URL to one file: allowed hosts, public addresses, bounds, and a reason for everything else."""

import http.server
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xgenvideo.curate import download
from xgenvideo.curate.download import (
    Limits,
    check_host,
    download_hook,
    download_http,
    download_object,
    download_ytdlp,
    find_hook,
    find_ytdlp,
    public_addresses,
)
from xgenvideo.curate.pairs import RefusedError
from xgenvideo.curate.stores import names_in, open_store
from xgenvideo.errors import ConfigError, DataError, MissingExtra

LIMITS = Limits(("videos.example", "*.cdn.example"), megabytes=1.0, seconds=5.0)
CONTENT = bytes(range(256)) * 40


def reason_of(action: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as refused:
        action()
    return refused.value.reason


class Site(http.server.BaseHTTPRequestHandler):
    """Answers by path; `asked` of the server counts what was asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked.append((self.headers["host"], self.path))  # type: ignore[attr-defined]
        port = self.server.server_address[1]
        moved = {
            "/moved": "/a.mp4",
            "/to-cdn": f"http://one.cdn.example:{port}/a.mp4",
            "/to-evil": f"http://evil.example:{port}/a.mp4",
            "/to-private": f"http://inner.cdn.example:{port}/a.mp4",
            "/to-file": "file:///etc/passwd",
            "/loop": "/loop",
        }
        if self.path in moved:
            self._answer(302, b"", location=moved[self.path])
        elif self.path == "/a.mp4":
            self._answer(200, CONTENT)
        elif self.path == "/short":
            self._answer(200, CONTENT, length=2 * len(CONTENT))
        elif self.path == "/announced":
            self._answer(200, b"", length=10**9)
        elif self.path in ("/endless", "/slow"):
            self._pour(b"x" * (2**16 if self.path == "/endless" else 1), 0.0 if self.path == "/endless" else 0.05)
        else:
            self._answer(503 if self.path == "/busy" else 404, b"")

    def _answer(self, status: int, content: bytes, location: str = "", length: int | None = None) -> None:
        self.send_response(status)
        if location:
            self.send_header("location", location)
        self.send_header("content-length", str(len(content) if length is None else length))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def _pour(self, piece: bytes, pause: float) -> None:
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        try:
            while not self.server.ended.wait(pause):  # type: ignore[attr-defined]
                self.wfile.write(piece)
        except OSError:
            return

    def log_message(self, *unused: object) -> None:
        return


class Server(http.server.ThreadingHTTPServer):
    asked: list[tuple[str, str]]
    ended: threading.Event


@pytest.fixture
def site() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Site)
    server.asked, server.ended = [], threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(site: Server, path: str, to: Path, limits: Limits = LIMITS) -> None:
    """As if loopback were public, but for one name that is at a private address."""

    def addresses(host: str, port: int) -> list[str]:
        return public_addresses(host, port, lambda *_: ["10.0.0.7"]) if host.startswith("inner") else ["127.0.0.1"]

    download_http(f"http://videos.example:{site.server_address[1]}{path}", to, limits, addresses)


def test_a_file_comes_whole_also_by_redirects_of_allowed_hosts(site: Server, tmp_path: Path) -> None:
    for number, path in enumerate(("/a.mp4", "/moved", "/to-cdn")):
        fetch(site, path, tmp_path / str(number))
        assert (tmp_path / str(number)).read_bytes() == CONTENT
    assert site.asked[-1] == (f"one.cdn.example:{site.server_address[1]}", "/a.mp4")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/to-evil", "download_refused_host"),
        ("/to-file", "download_refused_host"),
        ("/to-private", "download_private_address"),
        ("/loop", "download_failed"),
        ("/gone", "download_failed"),
        ("/busy", "download_unreachable"),
        ("/short", "download_unreachable"),
        ("/announced", "download_too_large"),
        ("/endless", "download_too_large"),
    ],
)
def test_what_does_not_work_out_has_a_reason(site: Server, tmp_path: Path, path: str, reason: str) -> None:
    assert reason_of(lambda: fetch(site, path, tmp_path / "video")) == reason
    assert not any("evil" in host or "inner" in host for host, _ in site.asked)
    if reason == "download_too_large":
        assert (tmp_path / "video").stat().st_size <= 1e6


def test_a_server_that_drips_is_cut_off(site: Server, tmp_path: Path) -> None:
    began = time.monotonic()
    short = Limits(LIMITS.hosts, 1.0, seconds=0.5)
    assert reason_of(lambda: fetch(site, "/slow", tmp_path / "video", short)) == "download_timeout"
    assert time.monotonic() - began < 3


def test_no_server_is_no_answer(tmp_path: Path) -> None:
    def go() -> None:
        download_http("http://videos.example:1/a", tmp_path / "video", LIMITS, lambda host, port: ["127.0.0.1"])

    assert reason_of(go) == "download_unreachable"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://videos.example/a",
        "file:///etc/passwd",
        "s3://bucket/a",
        "http://videos.example.evil.example/a",
        "http://evilvideos.example/a",
        "http://cdn.example/a",
        "http://user@videos.example/a",
        "http://videos.example@evil.example/a",
        "http://videos.example\\@evil.example/a",
        "http://127.0.0.1/a",
        "http://[::ffff:127.0.0.1]/a",
        "http://[::1",
        "http://videos.example:port/a",
        "//videos.example/a",
        "",
    ],
)
def test_only_hosts_of_the_list_are_asked(url: str) -> None:
    assert reason_of(lambda: check_host(url, LIMITS.hosts)) == "download_refused_host"


@pytest.mark.parametrize(
    "url", ["https://Videos.Example./a", "http://videos.example:8080/a", "https://a.b.cdn.example/"]
)
def test_hosts_of_the_list_are_hosts_whatever_their_writing(url: str) -> None:
    check_host(url, LIMITS.hosts)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1", "0.0.0.0"]
)
def test_one_private_address_among_public_ones_refuses_the_host(address: str) -> None:
    found = ["93.184.215.14", address]
    assert reason_of(lambda: public_addresses("videos.example", 443, lambda *_: found)) == "download_private_address"
    assert public_addresses("videos.example", 443, lambda *_: found[:1]) == found[:1]


def test_loopback_is_refused_by_default(site: Server, tmp_path: Path) -> None:
    url = f"http://localhost:{site.server_address[1]}/a.mp4"
    limits = Limits(("localhost",), 1.0, 5.0)
    assert reason_of(lambda: download_http(url, tmp_path / "video", limits)) == "download_private_address"
    assert not site.asked


def test_an_object_store_is_listed_and_read(tmp_path: Path) -> None:
    files, _ = open_store("memory://bucket")
    for name, content in {
        "a.mp4": CONTENT,
        "deep/b.webm": CONTENT,
        "notes.txt": b"",
        "large.mp4": bytes(2**21),
    }.items():
        files.pipe(f"/bucket/videos/{name}", content)
    files.pipe("/bucket/videos-of-others/c.mp4", CONTENT)
    try:
        assert names_in("memory://bucket/videos", (".mp4", ".webm")) == {"a.mp4", "deep/b.webm", "large.mp4"}
        download_object("memory://bucket/videos/deep/b.webm", tmp_path / "b", LIMITS)
        assert (tmp_path / "b").read_bytes() == CONTENT
        for name, reason in {"large.mp4": "download_too_large", "none.mp4": "missing_file"}.items():
            url = f"memory://bucket/videos/{name}"
            assert reason_of(lambda url=url, name=name: download_object(url, tmp_path / name, LIMITS)) == reason  # type: ignore[misc]
        with pytest.raises(DataError, match="is no folder of that store"):
            names_in("memory://bucket/none", (".mp4",))
    finally:
        files.rm("/bucket", recursive=True)


@pytest.mark.parametrize("url", ["https://host/videos", "simplecache::s3://bucket/a", "nonsense://bucket/a"])
def test_what_is_no_object_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/folder"):
        open_store(url)


def test_a_store_whose_package_is_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match=r"s3fs.*xgenvideo\[remote\]"):
        open_store("s3://bucket/folder")


def test_a_function_of_the_users_fetches(tmp_path: Path) -> None:
    def write(url: str, to: Path) -> None:
        if "gone" in url:
            raise LookupError("not known")
        if "silent" in url:
            raise TimeoutError("no answer")
        if "nothing" not in url:
            to.write_bytes(bytes(2**21) if "large" in url else url.encode())

    download_hook(write, "https://videos.example/a", tmp_path / "a", LIMITS)
    assert (tmp_path / "a").read_text() == "https://videos.example/a"
    expected = {
        "videos.example/gone": "download_failed",
        "videos.example/silent": "download_unreachable",
        "videos.example/nothing": "download_failed",
        "videos.example/large": "download_too_large",
        "evil.example/a": "download_refused_host",
    }
    for place, reason in expected.items():
        to = tmp_path / place.replace("/", "-")
        assert reason_of(lambda p=place, to=to: download_hook(write, f"https://{p}", to, LIMITS)) == reason  # type: ignore[misc]
    assert find_hook("os.path:join") is os.path.join  # type: ignore[comparison-overlap]
    for name in ("no.such.module:fetch", "os:no_such_function", "os:name"):
        with pytest.raises(ConfigError, match=r"curate\.download"):
            find_hook(name)


PROGRAM = """#!{python}
import json, sys, time, pathlib, subprocess
given = sys.argv[1:]
pathlib.Path({log!r}).open("a").write(json.dumps(given) + "\\n")
folder, url = pathlib.Path(given[given.index("--paths") + 1]), given[-1]
if "gone" in url:
    sys.exit("ERROR: [youtube] gone: Video unavailable")
if "busy" in url:
    sys.exit("ERROR: [youtube] busy: Unable to download API page: HTTP Error 429: Too Many Requests")
if "huge" in url:
    print("[download] File is larger than max-filesize (3 bytes > 2 bytes). Aborting.")
    sys.exit(0)
if "growing" in url:
    with open(folder / "video.mp4.part", "wb", 0) as file:
        while True:
            file.write(bytes(2**16))
if "hanging" in url:
    print("started", subprocess.Popen(["sleep", "60"]).pid, file=open({child!r}, "w"))
    time.sleep(60)
spans = [given[n + 1].strip("*").split("-") for n, word in enumerate(given) if word == "--download-sections"]
for start, end in spans or [("", "")]:
    name = f"{{float(start):.3f}}-{{min(float(end), 9.5):.3f}}.mp4" if start else "video.webm"
    (folder / name).write_bytes((url + start).encode())
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for yt-dlp on PATH; its calls are lines of a log."""
    log, path = tmp_path / "calls.jsonl", tmp_path / "bin" / "yt-dlp"
    path.parent.mkdir()
    path.write_text(PROGRAM.format(python=sys.executable, log=str(log), child=str(tmp_path / "child")))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (path.parent / "ffmpeg").symlink_to(sys.executable)  # only looked for
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")
    return log


def at(address: str) -> Callable[[str, int], list[str]]:
    return lambda host, port: public_addresses(host, port, lambda *_: [address])


def run(name: str, folder: Path, spans: tuple[tuple[float, float], ...] = (), seconds: float = 20.0) -> list[Path]:
    folder.mkdir()
    limits = Limits(("videos.example",), 1.0, seconds)
    return download_ytdlp(f"https://videos.example/watch?v={name}", folder, spans, 360, limits, at("93.184.215.14"))


def test_ytdlp_is_told_what_to_fetch_and_nothing_by_a_config_file(program: Path, tmp_path: Path) -> None:
    (whole,) = run("-abc", tmp_path / "one")
    assert whole.read_text() == "https://videos.example/watch?v=-abc"
    said = program.read_text()
    assert '"--ignore-config"' in said
    assert '"--max-filesize", "1000000"' in said
    assert said.rstrip().endswith('"--", "https://videos.example/watch?v=-abc"]')
    files = run("two", tmp_path / "two", ((7.25, 12.0), (1.0, 2.5)))
    assert [file.read_text()[-5:] for file in files] == ["7.250", "1.000"]
    refused = {"evil.example": "download_refused_host", "videos.example": "download_private_address"}
    for host, reason in refused.items():
        with pytest.raises(RefusedError) as refusal:
            download_ytdlp(f"https://{host}/a", tmp_path, (), 360, LIMITS, at("192.168.0.9"))
        assert refusal.value.reason == reason
    assert len(program.read_text().splitlines()) == 2


def test_what_ytdlp_cannot_do_has_a_reason(program: Path, tmp_path: Path) -> None:
    expected = {
        "gone": "download_failed",
        "busy": "download_unreachable",
        "huge": "download_too_large",
        "growing": "download_too_large",
    }
    assert {name: reason_of(lambda n=name: run(n, tmp_path / n)) for name in expected} == expected  # type: ignore[misc]


def test_a_ytdlp_that_hangs_is_killed_with_what_it_started(program: Path, tmp_path: Path) -> None:
    assert reason_of(lambda: run("hanging", tmp_path / "folder", seconds=2.0)) == "download_timeout"
    child = Path(f"/proc/{(tmp_path / 'child').read_text().split()[1]}/stat")
    deadline = time.monotonic() + 5
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the process that yt-dlp started is alive"
        time.sleep(0.05)


def test_sections_without_ffmpeg_are_refused(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program.parent / "bin" / "ffmpeg").unlink()
    monkeypatch.setenv("PATH", str(program.parent / "bin"))
    assert find_ytdlp() == str(program.parent / "bin" / "yt-dlp")
    with pytest.raises(ConfigError, match=r"curate\.download_sections.*ffmpeg"):
        find_ytdlp(sections=True)


def test_without_ytdlp_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    with pytest.raises(MissingExtra, match=r"xgenvideo\[remote\]"):
        find_ytdlp()
