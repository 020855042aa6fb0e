"""The page in a real Chromium: a video, its frames, an answer whose times move the player, a search, and a token.

Needs the package playwright and a Chromium ($CHROMIUM or one on the path); skipped without.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.infer.conftest import running
from xgenvideo.infer.release import Release

pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "a-token-of-a-team-0123456789"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which an error of a script, or anything that the policy of content forbids, fails the test."""
    page, wrong = browser.new_page(viewport={"width": 390, "height": 844}), list[str]()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.set_default_timeout(20_000)
    yield page
    page.close()
    assert not [text for text in wrong if "401" not in text and "422" not in text]


def test_a_video_is_watched_asked_about_and_searched(
    page: Any, release: Release, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    windows = list(release.windows(videos / "a.mp4"))
    with running(release, index=videos) as address:
        page.goto(address)
        page.set_input_files("#file", videos / "a.mp4")
        page.wait_for_selector("#send:not([disabled])")
        assert page.locator("#frames img").count() == sum(len(window.pts) for window in windows)
        assert page.locator("#frames button").nth(3).inner_text() == "0:01.5"
        assert page.locator("#bar .edge").count() == len(windows) - 1
        page.locator("#frames button").nth(3).click()
        page.wait_for_function("() => Math.abs(document.getElementById('player').currentTime - 1.5) < 0.01")
        page.fill("#text", "Which appears first?")
        page.press("#text", "Enter")
        page.wait_for_selector("#send:not([disabled])")
        answer = release.generate(videos / "a.mp4", "Which appears first?")
        assert page.locator("#log .said").inner_text() == answer
        assert page.locator("#log .time").count() >= 1
        last = page.locator("#log .time").last
        minutes, seconds = last.inner_text().split(" – ")[0].split(":")
        last.click()
        target = 60 * int(minutes) + float(seconds)
        page.wait_for_function(f"() => Math.abs(document.getElementById('player').currentTime - {target}) < 0.11")
        assert page.locator("#part").is_visible(), "the next question is about that span"
        page.click("#all")
        assert page.locator("#part").is_hidden()
        assert page.evaluate("() => document.documentElement.scrollWidth") == 390, "nothing is wider than a phone"
        page.fill("#query", "a red circle moves left")
        while page.locator("#hits button").count() == 0:  # the folder may still be being read
            page.press("#query", "Enter")
            page.wait_for_timeout(200)
        page.locator("#hits button").first.click()
        page.wait_for_selector("#send:not([disabled])")
        assert "/media/" in page.locator("#player").get_attribute("src")
        assert page.locator("#frames img").count() > 0
        page.wait_for_function("() => document.getElementById('player').readyState >= 1")


def test_what_cannot_be_read_is_told(page: Any, release: Release, videos: Path) -> None:
    with running(release) as address:
        page.goto(address)
        page.set_input_files("#file", videos / "text.mp4")
        page.wait_for_selector("#status.warn")
        assert "text.mp4: not_a_video" in page.locator("#status").inner_text()
        assert page.locator("#send").is_disabled()
        assert page.locator("#find").is_hidden()


def test_the_token_is_asked_for_once(page: Any, release: Release, videos: Path) -> None:
    with running(release, token=TOKEN) as address:
        page.goto(address)
        page.set_input_files("#file", videos / "a.mp4")
        page.wait_for_selector("#door[open]")
        page.fill("#token", "wrong, and long enough")
        page.press("#token", "Enter")
        page.wait_for_timeout(300)
        page.wait_for_selector("#door[open]")
        page.fill("#token", TOKEN)
        page.press("#token", "Enter")
        page.wait_for_selector("#send:not([disabled])")
        assert page.locator("#door").is_hidden()
