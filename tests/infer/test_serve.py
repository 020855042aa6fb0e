"""The server's endpoints, over real connections: OpenAI's own client, curl, and what is refused."""

import base64
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.infer.conftest import running
from xgenvideo.errors import ConfigError
from xgenvideo.infer.cite import cite
from xgenvideo.infer.embed import embed_text
from xgenvideo.infer.generate import generate
from xgenvideo.infer.moments import moments
from xgenvideo.infer.release import Release
from xgenvideo.infer.search import search
from xgenvideo.infer.serve import check_port, read_token, serve
from xgenvideo.infer.serving.limits import Limits, limits_from
from xgenvideo.infer.serving.sources import Places

QUESTION = "Which appears first?"
TOKEN = "a-token-of-a-team-0123456789"


@pytest.fixture(scope="module")
def address(release: Release, videos: Path) -> Iterator[str]:
    """A server that allows the videos' folder."""
    with running(release, places=Places((videos,)), limits=Limits(max_mb=2.0, rate_per_minute=0)) as address:
        yield address


def data_url(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def chat(part: dict[str, Any], text: str = QUESTION, **more: Any) -> dict[str, Any]:
    """A chat request about one video."""
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": text}, part]}], "max_tokens": 8, **more}


def by_url(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def post(address: str, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    sent = {"content-type": "application/json"} | headers
    return httpx.post(address + path, content=content, headers=sent, timeout=60)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def test_every_form_of_a_video_has_the_same_answer(address: str, release: Release, videos: Path) -> None:
    path = videos / "a.mp4"
    expected = release.generate(path, QUESTION, 8)
    with path.open("rb") as file:
        uploaded = httpx.post(address + "/v1/files", files={"file": ("a.mp4", file)}, data={"purpose": "user_data"})
    assert uploaded.status_code == 200, uploaded.text
    plain = base64.b64encode(path.read_bytes()).decode()
    for part in (
        by_url(data_url(path)),
        by_url("a.mp4"),
        by_url(f"file://{path.resolve()}"),
        {"type": "input_video", "input_video": {"data": plain, "format": "mp4"}},
        {"type": "file", "file": {"file_data": data_url(path), "filename": "a.mp4"}},
        {"type": "file", "file": {"file_id": uploaded.json()["id"]}},
    ):
        response = post(address, "/v1/chat/completions", chat(part))
        assert response.status_code == 200, response.text
        body = response.json()
        assert body["choices"][0]["message"]["content"] == expected
        assert body["choices"][0]["finish_reason"] in ("stop", "length")
        assert body["usage"]["prompt_tokens"] == len(release.prompt_ids(QUESTION))
        assert body["usage"]["completion_tokens"] <= 8


def test_openais_client(address: str, release: Release, videos: Path) -> None:
    openai = pytest.importorskip("openai")
    path = videos / "a.mp4"
    expected = release.generate(path, QUESTION, 8)
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        (model,) = client.models.list().data
        assert model.id == release.config.name
        messages = chat(by_url(data_url(path)))["messages"]
        whole = client.chat.completions.create(model=model.id, messages=messages, max_tokens=8)
        assert whole.choices[0].message.content == expected
        chunks = list(
            client.chat.completions.create(
                model=model.id, messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True}
            )
        )
        said = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
        assert said.strip() == expected
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage
        texts = ["a red circle moves left", "a blue star"]
        # Without a format the client asks for base64 and decodes it.
        for options in ({}, {"encoding_format": "float"}):
            found = client.embeddings.create(model=model.id, input=texts, **options).data
            for one, text in zip(found, texts, strict=True):
                assert np.allclose(one.embedding, embed_text(release, text), atol=1e-6)
        file = client.files.create(file=path, purpose="user_data")
        part = {"type": "file", "file": {"file_id": file.id}}
        again = client.chat.completions.create(model=model.id, messages=chat(part)["messages"], max_tokens=8)
        assert again.choices[0].message.content == expected
        assert client.files.retrieve(file.id).filename == "a.mp4"
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError, match="upload it again"):
            client.chat.completions.create(model=model.id, messages=chat(part)["messages"])
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            client.chat.completions.create(model=model.id, messages=chat(by_url("text.mp4"))["messages"])
        assert refused.value.code == "not_a_video"
        with pytest.raises(openai.NotFoundError, match="not served here"):
            client.chat.completions.create(model="gpt", messages=messages)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(address: str, release: Release, videos: Path) -> None:
    def curl(*arguments: str) -> str:
        done = subprocess.run(["curl", "-sS", *arguments], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    assert json.loads(curl(f"{address}/health"))["status"] == "ok"
    file = json.loads(curl(f"{address}/v1/files", "-F", f"file=@{videos / 'a.mp4'}", "-F", "purpose=user_data"))
    assert file["seconds"] > 0
    body = chat({"type": "file", "file": {"file_id": file["id"]}}, stream=True)
    json_type = ("-H", "content-type: application/json")
    lines = curl("-N", f"{address}/v1/chat/completions", *json_type, "-d", json.dumps(body)).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    pieces = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for line in lines[:-2]]
    assert "".join(pieces).strip() == release.generate(videos / "a.mp4", QUESTION, 8)


def test_times_that_speak_for_the_answer(address: str, release: Release, videos: Path) -> None:
    path = videos / "a.mp4"
    response = post(address, "/v1/chat/completions", chat(by_url("a.mp4"), times=True)).json()
    found = moments(release, release.windows(path))
    text = response["choices"][0]["message"]["content"]
    expected = cite(release, found.latents, found.spans, QUESTION, text)
    assert [(one["start"], one["end"]) for one in response["times"]] == [(one.start, one.end) for one in expected]
    stream = post(address, "/v1/chat/completions", chat(by_url("a.mp4"), times=True, stream=True)).text
    last = json.loads(stream.split("\n\n")[-3].removeprefix("data: "))
    assert last["times"] == response["times"]


def test_a_question_about_a_span(address: str, release: Release, videos: Path) -> None:
    found = moments(release, release.windows(videos / "a.mp4"))
    start, end = found.spans[3]
    response = post(address, "/v1/chat/completions", chat(by_url("a.mp4"), span=[start + 0.1, end], times=True)).json()
    ids = generate(release.model, release.tokenizer, found.latents[3][None], [release.prompt_ids(QUESTION)], 8)
    assert response["choices"][0]["message"]["content"] == release.tokenizer.decode(ids[0]).strip()
    assert all((one["start"], one["end"]) == (start, end) for one in response["times"])
    for wrong in ([1], "all", [2, 1], [1e4, 2e4], [0, True]):
        refused = post(address, "/v1/chat/completions", chat(by_url("a.mp4"), span=wrong))
        assert (refused.status_code, error_of(refused)["param"]) == (400, "span")


def test_embeddings_of_videos(address: str, release: Release, videos: Path) -> None:
    response = post(address, "/v1/embeddings", {"input": [by_url("a.mp4"), "a star"]})
    assert response.status_code == 200, response.text
    video, text = response.json()["data"]
    own = [release.read_window(window)[1].numpy() for window in release.windows(videos / "a.mp4")]
    assert np.allclose([one["embedding"] for one in video["windows"]], own, atol=1e-5)
    mean = np.mean(own, axis=0)
    assert np.allclose(video["embedding"], mean / np.linalg.norm(mean), atol=1e-5)
    assert np.linalg.norm(text["embedding"]) == pytest.approx(1, abs=1e-5)
    assert video["windows"][0]["start"] == 0


def test_an_upload_shows_the_frames_that_were_sampled(address: str, release: Release, videos: Path) -> None:
    file = post(address, "/v1/files", {"url": "a.mp4"}).json()
    windows = list(release.windows(videos / "a.mp4"))
    assert file["sampled_frames"] == sum(len(window.pts) for window in windows)
    assert [one[0] for one in file["windows"]] == [float(window.pts[0]) for window in windows]
    frames = httpx.get(f"{address}/v1/files/{file['id']}/frames").json()
    assert [one["time"] for one in frames["data"]] == torch.cat([window.pts for window in windows]).tolist()
    assert base64.b64decode(frames["data"][0]["picture"].partition(",")[2])[:2] == b"\xff\xd8"
    assert httpx.delete(f"{address}/v1/files/{file['id']}").status_code == 200
    assert httpx.get(f"{address}/v1/files/{file['id']}/frames").status_code == 404


def test_nothing_else_is_opened(release: Release, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.mp4").write_bytes((videos / "a.mp4").read_bytes())
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    with running(release, places=Places((tmp_path / "allowed",))) as address:
        for url in ("../secret.mp4", str(tmp_path / "secret.mp4"), "link.mp4", "missing.mp4", "a\0b", "/dev/zero"):
            response = post(address, "/v1/chat/completions", chat(by_url(url)))
            assert response.status_code == 400
            assert "is not a file in the allowed folder" in error_of(response)["message"]
        assert "other machines" in post(address, "/v1/chat/completions", chat(by_url("http://a.example/a.mp4"))).text
    with running(release) as address:
        assert "--allow" in post(address, "/v1/chat/completions", chat(by_url("a.mp4"))).text


@pytest.mark.parametrize(
    ("body", "status", "expected"),
    [
        ("{", 400, "JSON"),
        ([], 400, "JSON object"),
        ({"messages": []}, 400, "user message"),
        ({"messages": [{"role": "user", "content": "text only"}]}, 400, "one part with a video"),
        (chat({"type": "image_url", "image_url": {"url": "data:"}}), 400, "image_url"),
        (chat(by_url("data:video/mp4;base64,???")), 400, "base64"),
        (chat(by_url("data:video/mp4,plain")), 400, "base64"),
        (chat(by_url("a.mp4"), temperature="hot"), 400, "temperature"),
        (chat(by_url("a.mp4"), top_p=0), 400, "top_p"),
        (chat(by_url("a.mp4"), n=2), 400, "is not offered"),
        (chat(by_url("a.mp4"), tools=[{}]), 400, "tools"),
        (chat(by_url("a.mp4"), "very " * 500), 400, "tokens"),
        (chat(by_url("a.mp4"), model="other"), 404, "not served here"),
        (chat(by_url("text.mp4")), 422, "not_a_video"),
        (chat(by_url("a.mp4")) | {"padding": "x" * 2_000_001}, 413, "at most 2 MB"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(address: str, body: Any, status: int, expected: str) -> None:
    response = post(address, "/v1/chat/completions", body)
    assert response.status_code == status, response.text
    assert expected in error_of(response)["message"]


def test_no_body_makes_the_server_fail(address: str) -> None:
    odd: list[Any] = [None, True, -1, 1e400, float("nan"), "", "\ud800", [], [None], {}, {"type": "text"}, "x" * 5000]
    good = chat(by_url("a.mp4"))
    bodies: list[Any] = [good | {name: value} for value in odd for name in ("messages", "max_tokens", "seed", "span")]
    bodies += [good | {"temperature": value, "stream_options": value} for value in odd]
    bodies += [{"messages": [{"role": "user", "content": value}]} for value in odd]
    bodies += [{"messages": [{"role": "user", "content": [value]}]} for value in odd]
    bodies += [
        chat({"type": kind, kind: value}) for value in odd for kind in ("video_url", "input_video", "file", "text")
    ]
    bodies += ["[" * 100_000, '{"seed":' + "9" * 5000 + "}", b"\xff\xfe", b"", json.dumps(good)[:-1]]
    with httpx.Client(base_url=address, headers={"content-type": "application/json"}, timeout=60) as client:
        for body in bodies:
            content = body if isinstance(body, str | bytes) else json.dumps(body)
            for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/files"):
                response = client.post(path, content=content)
                assert response.status_code in (200, 400, 404, 422), (path, body, response.text)
        for value in odd:
            for body in ({"input": value}, {"input": [value]}, {"input": "a", "encoding_format": value}):
                assert client.post("/v1/embeddings", content=json.dumps(body)).status_code in (200, 400), body


def test_embeddings_and_search_refuse_too(address: str) -> None:
    for body, expected in (
        ({"input": []}, "1 to"),
        ({"input": [""]}, "empty"),
        ({"input": [7]}, "must be a text"),
        ({"input": "a", "dimensions": 3}, "dimensions"),
        ({"input": "a", "encoding_format": "gif"}, "encoding_format"),
    ):
        response = post(address, "/v1/embeddings", body)
        assert response.status_code == 400
        assert expected in error_of(response)["message"]
    assert "--index" in error_of(post(address, "/v1/search", {"query": "a star"}))["message"]
    assert error_of(httpx.get(address + "/v1/nothing"))["code"] == "unknown_url"
    assert httpx.get(address + "/v1/chat/completions").status_code == 405
    form = httpx.post(address + "/v1/files", files={"other": ("a.mp4", b"x")})
    assert (form.status_code, error_of(form)["param"]) == (400, "file")


def test_a_web_page_cannot_speak_for_the_user(address: str) -> None:
    body, path = chat(by_url("a.mp4")), "/v1/chat/completions"
    assert post(address, path, body, host="evil.example").status_code == 400
    assert post(address, path, body, **{"content-type": "text/plain"}).status_code == 415
    foreign = ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"})
    for headers in foreign:
        assert error_of(post(address, path, body, **headers))["code"] == "foreign_origin"
        form = httpx.post(address + "/v1/files", files={"file": ("a.mp4", b"x")}, headers=headers)
        assert form.status_code == 403
    assert post(address, path, body, origin=address).status_code == 200
    answer = httpx.get(address + "/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers


def test_a_folder_is_searched_and_its_videos_are_watched(
    release: Release, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "folder"
    shutil.copytree(videos, folder)
    expected = search(release, folder, "a star", top=7)
    with running(release, index=folder) as address:
        while httpx.get(address + "/health").json()["indexed_videos"] is None:
            time.sleep(0.02)
        found = post(address, "/v1/search", {"query": "a star", "top": 7}).json()["data"]
        assert [(folder / one["video"], one["start"], one["end"]) for one in found] == [
            (one.video, one.start, one.end) for one in expected
        ]
        whole = httpx.get(address + found[0]["media"])
        assert whole.content == expected[0].video.read_bytes()
        part = httpx.get(address + found[0]["media"], headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole.content[10:20])
        name = found[0]["video"]
        for wrong in (f"/media/{name}", f"/media/{name}?key=0", "/media/../folder/a.mp4?key=0", "/media/none?key=0"):
            assert httpx.get(address + wrong).status_code == 404
        assert post(address, "/v1/chat/completions", chat(by_url(name))).status_code == 200
        assert "say what" in error_of(post(address, "/v1/search", {"query": " "}))["message"]
        (folder / name).unlink()
        assert httpx.get(address + found[0]["media"]).status_code == 404


def test_a_token_opens_the_door_beyond_loopback(release: Release, videos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token is needed"):
        serve(release, host="0.0.0.0")
    file = tmp_path / "token"
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 16") as refused:
        read_token(file)
    assert "short" not in str(refused.value)
    file.write_text(TOKEN + "\n")
    assert read_token(file) == TOKEN
    with running(release, places=Places((videos,)), token=TOKEN) as address:
        body = chat(by_url("a.mp4"))
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            response = post(address, "/v1/chat/completions", body, **headers)
            assert response.status_code == 401
            assert error_of(response)["code"] == "invalid_api_key"
        assert httpx.get(address + "/metrics").status_code == 401
        assert httpx.get(address + "/health").status_code == 200
        right = {"authorization": f"Bearer {TOKEN}", "host": "video.lab.example"}
        assert post(address, "/v1/chat/completions", body, **right).status_code == 200


def test_metrics_count_what_happened(release: Release, videos: Path) -> None:
    with running(release, places=Places((videos,))) as address:
        written = post(address, "/v1/chat/completions", chat(by_url("a.mp4"))).json()["usage"]
        post(address, "/v1/chat/completions", chat(by_url("text.mp4")))
        httpx.get(address + "/whatever/1234")
        lines = httpx.get(address + "/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert found['xgv_requests_total{endpoint="/v1/chat/completions",status="200"}'] == "1.0"
    assert found['xgv_requests_total{endpoint="/v1/chat/completions",status="422"}'] == "1.0"
    assert found['xgv_requests_total{endpoint="other",status="404"}'] == "1.0"
    assert found['xgv_request_seconds_count{endpoint="/v1/chat/completions"}'] == "2.0"
    assert found['xgv_decode_failures_total{reason="not_a_video"}'] == "1.0"
    assert float(found['xgv_tokens_total{kind="completion"}']) == written["completion_tokens"]
    assert float(found['xgv_tokens_total{kind="prompt"}']) == written["prompt_tokens"]
    assert found["xgv_queue_depth"] == "0.0"


def test_limits_are_settings_and_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    assert [field.name for field in fields(Limits) if f"`{field.name}`" not in page] == []
    assert limits_from(["serve.max_mb=200", "serve.queue=8"]) == Limits(max_mb=200.0, queue=8)
    for wrong, expected in (
        ("serve.max=1", "no such setting"),
        ("max_mb=1", "serve.field"),
        ("serve.queue=0", "above"),
    ):
        with pytest.raises(ConfigError, match=expected):
            limits_from([wrong])


def test_a_port_that_is_taken_is_refused_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=r"--port = .*cannot be taken on 127\.0\.0\.1 .*give another"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", 0)
