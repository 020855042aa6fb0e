"""Videos elsewhere: each fetched once, whatever fails has a reason, and what was fetched is not asked for again."""

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from tests.curate.conftest import CAPTION, write_clip_file
from tests.curate.test_sources import PANDA, PLAIN, panda_row, write_csv
from xgenvideo.curate import fetched
from xgenvideo.curate.inputs import Part
from xgenvideo.curate.parts import curate_part
from xgenvideo.curate.run import CurateSummary, curate
from xgenvideo.curate.settings import CurateSettings, settings_from
from xgenvideo.curate.sources import read_source
from xgenvideo.curate.takedown import forget, trace
from xgenvideo.data.dataset import open_dataset
from xgenvideo.errors import ConfigError, DataError, MissingExtra

SPANS = [["0:00:00.000", "0:00:02.000"], ["0:00:02.500", "0:00:05.000"]]
HOOK = """
import os, pathlib, shutil
HERE = pathlib.Path(__file__).parent

def fetch(url, to):
    with (HERE / "asked").open("a") as file:
        file.write(url + "\\n")
    name = url.rpartition("=")[2]
    if (HERE / "deadly").exists() and name in (HERE / "deadly").read_text().split():
        os._exit(3)
    if (HERE / "down").exists() and name in (HERE / "down").read_text().split():
        raise ConnectionError("the host is down")
    shutil.copyfile(HERE / "site" / (name + ".mp4"), to)
"""


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A listing of three videos, two clips each, and of two wrong ones; a hook has the first two, and counts calls."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "user_hook.py").write_text(HOOK)
    (tmp_path / "beside").mkdir()
    for seed, name in enumerate(("one", "two")):
        write_clip_file(tmp_path / "site" / f"{name}.mp4", frames=48, seed=seed)
    captions = [CAPTION, f"{CAPTION} Again."]
    rows = [panda_row(name, SPANS, [0.5, 0.6], captions) for name in ("one", "two", "gone")]
    rows.append(["evil", "http://169.254.169.254/latest", *panda_row("evil", SPANS[:1], [0.5])[2:]])
    rows.append(["odd", "file:///etc/passwd", *panda_row("odd", SPANS[:1], [0.5])[2:]])
    write_csv(tmp_path / "panda.csv", PANDA, rows)
    return tmp_path


def with_hook(**more: object) -> CurateSettings:
    values: dict[str, object] = {"download": "user_hook:fetch", "download_hosts": "www.youtube.com"}
    return CurateSettings(**({"steps": (), "vocabulary": 300, "workers": 1, "min_seconds": 0.5} | values | more))  # type: ignore[arg-type]


def run(away: Path, settings: CurateSettings, out: str = "out") -> CurateSummary:
    return curate(away / "panda.csv", away / out, settings, videos=away / "beside", work=away / "work")


def asked(away: Path) -> list[str]:
    return [url.rpartition("=")[2] for url in (away / "asked").read_text().split()]


def audit(away: Path, out: str = "out") -> dict[str, str | None]:
    lines = (away / out / "audit.jsonl").read_text().splitlines()
    return {line["name"]: line["reason"] for line in map(json.loads, lines)}


def test_a_video_is_fetched_once_for_its_clips_and_every_failure_is_counted(away: Path) -> None:
    summary = run(away, with_hook())
    assert (summary.pairs_in, summary.pairs_kept) == (8, 4)
    assert summary.dropped == {"download_failed": 2, "download_refused_host": 2}
    assert summary.pairs_failed == 4
    assert summary.funnel["download"] == 4
    assert sorted(asked(away)) == ["gone", "one", "two"]
    assert "download_refused_host" in (away / "out" / "report.html").read_text()
    (told,) = trace(away / "out", "one-0001")
    assert (told["video"], told["start"], told["end"]) == ("https://www.youtube.com/watch?v=one", 2.5, 5.0)
    assert told["licence"] == "Panda-70M: non-commercial research use"
    # The same as of files that lie in a folder.
    curate(away / "panda.csv", away / "near", PLAIN, videos=away / "site", work=away / "near.work")
    near, far = open_dataset(away / "near"), open_dataset(away / "out")
    for key in ("one-0000", "one-0001", "two-0000", "two-0001"):
        assert near.read(key).jpegs == far.read(key).jpegs
        assert near.read(key).lineage["content"] == far.read(key).lineage["content"]


def test_what_was_fetched_or_refused_is_not_asked_for_again(away: Path) -> None:
    run(away, with_hook())
    before = sorted(asked(away))
    again = run(away, with_hook(min_seconds=2.4), "again")
    assert again.dropped == {"download_failed": 2, "download_refused_host": 2, "too_short": 2}
    assert sorted(asked(away)) == before
    # Other sampling decodes anew, from the files that are here.
    assert run(away, with_hook(fps=1.0), "slower").pairs_kept == 4
    assert sorted(asked(away)) == before
    for file in (away / "work" / "fetched").iterdir():
        file.unlink()
    assert run(away, with_hook(min_seconds=0.6), "third").pairs_kept == 4
    assert sorted(asked(away)) == before, "its clips are decoded: the video is not needed"
    # A reason holds for the settings that it came about under.
    run(away, with_hook(max_download_mb=50.0), "fourth")
    assert sorted(asked(away)) == ["gone", *before]


def test_a_silent_host_is_asked_again_by_the_next_run(away: Path) -> None:
    (away / "down").write_text("two")
    assert run(away, with_hook()).dropped["download_unreachable"] == 2
    (away / "down").unlink()
    assert run(away, with_hook(), "again").dropped == {"download_failed": 2, "download_refused_host": 2}
    assert sorted(asked(away)) == ["gone", "one", "two", "two"]


def test_a_network_that_is_down_stops_the_run(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"video{number}" for number in range(fetched.MOST_UNREACHABLE + 5)]
    write_csv(away / "panda.csv", PANDA, [panda_row(name, SPANS[:1], [0.5]) for name in names])
    (away / "down").write_text(" ".join(names))
    with pytest.raises(DataError, match=r"none of the first 20 videos could be reached.*the host is down"):
        run(away, with_hook())
    assert not (away / "out").exists()


def test_a_download_that_kills_its_process_costs_its_own_clips(away: Path) -> None:
    (away / "deadly").write_text("two")
    assert run(away, with_hook(download_workers=1)).pairs_kept == 2
    reasons = audit(away)
    assert (reasons["two.0"], reasons["two.1"], reasons["gone.1"]) == (*["crashed_download"] * 2, "download_failed")


def test_what_the_captions_drop_is_not_fetched(away: Path) -> None:
    rows = [panda_row("one", SPANS[:1], [0.5], ["word " * 20]), panda_row("two", SPANS[:1], [0.5])]
    write_csv(away / "panda.csv", PANDA, rows)
    assert run(away, with_hook(steps=("captions",))).dropped == {"caption_repeats": 1}
    assert asked(away) == ["two"]


def test_fetched_videos_may_be_removed_when_their_unit_is_done(away: Path) -> None:
    kept = run(away, with_hook(unit_pairs=2), "kept")
    leftover = away / "out.work" / "fetched" / "part" / "of-a-killed-run"
    leftover.mkdir(parents=True)
    forgotten = curate(
        away / "panda.csv", away / "out", with_hook(unit_pairs=2, keep_downloads=False), videos=away / "beside"
    )
    assert list((away / "out.work" / "fetched").iterdir()) == []
    assert (forgotten.pairs_kept, forgotten.dropped) == (kept.pairs_kept, kept.dropped)
    assert open_dataset(away / "out").read("two-0001").jpegs == open_dataset(away / "kept").read("two-0001").jpegs


def test_parts_fetch_their_own_and_the_last_run_fetches_nothing(away: Path) -> None:
    settings = with_hook(unit_pairs=2)
    for number in range(2):
        listing, videos = away / "panda.csv", away / "beside"
        curate_part(listing, away / "out", Part(number, 2), settings, videos=videos, work=away / "work")
    assert sorted(asked(away)) == ["gone", "one", "two"]
    assert run(away, settings).pairs_kept == 4
    assert sorted(asked(away)) == ["gone", "one", "two"]


def test_shots_are_looked_for_in_fetched_videos(away: Path) -> None:
    summary = run(away, with_hook(split_shots="light", min_clip_seconds=0.5))
    assert summary.pairs_kept >= 4
    assert {reason: count for reason, count in summary.dropped.items() if reason != "shot_too_short"} == {
        "download_failed": 2,
        "download_refused_host": 2,
    }
    assert sorted(asked(away)) == ["gone", "one", "two"]


def test_a_takedown_removes_the_fetched_video(away: Path) -> None:
    run(away, with_hook())
    videos = set((away / "work" / "fetched").iterdir())
    forget(away / "out", "youtube/one")
    left = set((away / "work" / "fetched").iterdir())
    assert len(left) == len(videos) - 1
    assert "watch?v=one" not in (away / "work" / "scores" / "download.jsonl").read_text()
    assert "watch?v=two" in (away / "work" / "scores" / "download.jsonl").read_text()


def test_a_folder_of_an_object_store_is_read(away: Path) -> None:
    write_clip_file(away / "site" / "evil.0.mp4", seed=3)
    url = f"local://{away}/site"
    summary = curate(away / "panda.csv", away / "out", PLAIN, videos=url)
    assert audit(away) == {
        "one.0": None, "one.1": None, "two.0": None, "two.1": None, "evil.0": None,
        "gone.0": "missing_file", "gone.1": "missing_file", "odd.0": "missing_file",
    }  # fmt: skip
    assert (summary.pairs_kept, summary.dropped) == (5, {"missing_file": 3})
    lineage = open_dataset(away / "out").read("evil-0000").lineage
    assert lineage["video"] == f"{url}/evil.0.mp4"
    assert lineage["published"]["source_end"] == 2.0


def test_a_listing_of_webvid_gives_its_own_urls_and_internvid_none(tmp_path: Path) -> None:
    listing = write_csv(
        tmp_path / "webvid.csv",
        ["videoid", "contentUrl", "name", "page_dir"],
        [["7", "https://cdn.example/7.mp4", CAPTION, "../.."], ["8", "javascript:alert(1)", CAPTION, ""]],
    )
    entries = {entry.name: entry for entry in read_source(listing, None, tmp_path, linked=True)}
    assert entries["7"].url == "https://cdn.example/7.mp4"
    assert entries["7"].path is None
    assert entries["row 3"].reason == "download_refused_host"
    (away,) = (entry for entry in read_source(listing, None, tmp_path) if entry.name == "8")
    assert away.url is None
    line = {"YoutubeID": "abc", "Start_timestamp": "00:00:01.000", "End_timestamp": "00:00:02.000", "Caption": CAPTION}
    (tmp_path / "internvid.jsonl").write_text(json.dumps(line))
    (entry,) = read_source(tmp_path / "internvid.jsonl", None, tmp_path, linked=True)
    assert (entry.url, entry.start, entry.end) == ("https://www.youtube.com/watch?v=abc", 1.0, 2.0)


YTDLP = """#!{python}
import pathlib, shutil, sys
given = sys.argv[1:]
with open({log!r}, "a") as file:
    file.write(given[-1] + "\\n")
folder = pathlib.Path(given[given.index("--paths") + 1])
for n, word in enumerate(given):
    if word == "--download-sections":
        start, end = given[n + 1].strip("*").split("-")
        shutil.copyfile({clip!r}, folder / f"{{start}}-{{end}}.mp4")
"""


def test_ytdlp_fetches_the_sections_of_a_video_in_one_call(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = away / "bin" / "yt-dlp"
    program.parent.mkdir()
    clip = str(away / "site" / "one.mp4")
    program.write_text(YTDLP.format(python=sys.executable, log=str(away / "asked"), clip=clip))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (program.parent / "ffmpeg").symlink_to(sys.executable)  # only looked for
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    rows = [panda_row(name, SPANS, [0.5, 0.6]) for name in ("one", "two", "gone")]
    rows = [[row[0], f"https://videos.example/watch?v={row[0]}", *row[2:]] for row in rows]
    write_csv(away / "panda.csv", PANDA, rows)
    summary = run(away, with_hook(download="yt-dlp", download_hosts="videos.example", download_sections=True))
    assert sorted(asked(away)) == ["gone", "one", "two"]
    assert (summary.pairs_kept, summary.dropped) == (6, {})
    told = open_dataset(away / "out").read("one-0001").lineage
    assert (told["start"], told["end"]) == (0.0, 6.0)
    assert (told["published"]["source_start"], told["published"]["source_end"]) == (2.5, 5.0)


def test_a_setting_that_cannot_be_is_refused_before_anything_is_fetched(
    away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, said in {
        "download=http": "must name the hosts",
        "download=ftp": "no way to fetch",
        "download_hosts=https://a.example/": "no name of a host",
        "download_sections=true": r"needs curate\.download=yt-dlp",
        "max_download_mb=0": "must be over 0",
    }.items():
        with pytest.raises(ConfigError, match=said):
            settings_from([f"curate.{given}"])
    settings = settings_from(["curate.download=http", "curate.download_hosts=a.example, *.B.example"])
    assert settings.hosts == ("a.example", "*.b.example")
    with pytest.raises(ConfigError, match=r"user_hook:nothing.*cannot be imported"):
        run(away, with_hook(download="user_hook:nothing"))
    monkeypatch.setenv("PATH", str(away))
    with pytest.raises(MissingExtra, match=r"xgenvideo\[remote\]"):
        run(away, with_hook(download="yt-dlp"))
    assert not (away / "out").exists()
