"""Published listings: every clip becomes an entry or a reason, no text in them is run, subsets are chosen by score."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.curate.conftest import CAPTION, write_clip_file
from xgenvideo.curate.pairs import Entry
from xgenvideo.curate.run import curate
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.sources import read_inputs
from xgenvideo.data.dataset import open_dataset
from xgenvideo.errors import ConfigError, DataError

REAL = Path(__file__).parents[3] / "shared" / "data" / "panda70m"
PANDA = ["videoID", "url", "timestamp", "caption", "matching_score", "desirable_filtering", "shot_boundary_detection"]
PLAIN = CurateSettings(steps=(), vocabulary=300, workers=1, min_seconds=0.5)


def panda_row(video: str, spans: list[list[str]], scores: list[float], captions: list[str] | None = None) -> list[str]:
    captions = captions or [f"{CAPTION} {number}" for number in range(len(spans))]
    shots = [[["0:00:00.000", "0:00:01.000"]] for _ in spans]
    lists = (spans, captions, scores, ["desirable"] * len(spans), shots)
    return [video, f"https://www.youtube.com/watch?v={video}", *map(str, lists)]


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def reasons(entries: list[Entry]) -> dict[str, str | None]:
    return {entry.name: entry.reason for entry in entries}


def read(source: Path, preset: str = "", videos: Path | None = None) -> list[Entry]:
    settings = CurateSettings(preset=preset)
    return [item.entry for item in read_inputs(source, videos, settings, source.parent)[0]]


def test_panda_clips_are_cut_by_their_times_and_carry_scores_and_licence(tmp_path: Path) -> None:
    write_clip_file(tmp_path / "videos" / "-aB_1.mp4", frames=48)
    spans = [["0:00:00.000", "0:00:02.000"], ["0:00:02.500", "0:00:06.000"], ["0:00:09.000", "0:00:10.000"]]
    listing = write_csv(tmp_path / "panda.csv", PANDA, [panda_row("-aB_1", spans, [0.5, 0.42, 0.9])])
    summary = curate(listing, tmp_path / "out", PLAIN, videos=tmp_path / "videos")
    assert (summary.pairs_in, summary.pairs_kept, summary.dropped) == (3, 2, {"too_short": 1})
    dataset = open_dataset(tmp_path / "out")
    rows = [row for split in dataset.counts for row in dataset.rows(split)]
    assert {row.source for row in rows} == {"youtube/-aB_1"}
    assert len({row.split for row in rows}) == 1
    assert [row.pts for row in rows] == [(0, 0.5, 1.0, 1.5), (0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0)]
    lineages = [dataset.read(row.key).lineage for row in rows]
    assert [(lineage["start"], lineage["end"]) for lineage in lineages] == [(0, 2.0), (2.5, 6.0)]
    assert lineages[1]["published"]["matching_score"] == 0.42
    assert rows[1].licence == "Panda-70M: non-commercial research use"
    assert dataset.read(rows[0].key).jpegs != dataset.read(rows[1].key).jpegs[:4]


def test_hostile_panda_rows_get_reasons_and_nothing_is_run(tmp_path: Path) -> None:
    span, mark = [["0:00:00.000", "0:00:01.000"]], tmp_path / "was_run"
    good = panda_row("good", span, [0.5])

    def changed(column: str, text: str) -> list[str]:
        return [text if name == column else cell for name, cell in zip(PANDA, good, strict=True)]

    cases = [
        (changed("caption", f"[__import__('pathlib').Path({str(mark)!r}).touch()]"), "bad_list"),
        (changed("caption", "[" * 50000), "bad_list"),
        (changed("caption", "-" * 500000 + "1"), "bad_list"),
        (changed("caption", "{'a': 1}"), "bad_list"),
        (changed("caption", "['one', 'two']"), "unequal_lists"),
        (changed("caption", "[7]"), "no_caption"),
        (changed("caption", "['half \\ud800 a pair']"), "caption_encoding"),
        (changed("timestamp", "[['0:00:02.000', '0:00:01.000']]"), "bad_times"),
        (changed("timestamp", "[['-0:00:02.000', '0:00:01.000']]"), "bad_times"),
        (changed("timestamp", "[['nan', 'inf']]"), "bad_times"),
        (changed("timestamp", "[['0:00:01.000']]"), "bad_times"),
        (changed("matching_score", "['much']"), "bad_score"),
        (changed("matching_score", "[1e999]"), "bad_score"),
        (changed("shot_boundary_detection", "[b'bytes']"), "bad_list"),
        (changed("videoID", "../../etc/passwd"), "bad_record"),
        (good[:-1], "bad_record"),
        (changed("caption", "x" * 2**21), "bad_record"),
        (good, None),
        (good, "duplicate_key"),
    ]
    entries = read(write_csv(tmp_path / "panda.csv", PANDA, [row for row, _ in cases]))
    kept = [entry for entry in entries if entry.reason is None]
    assert [entry.name for entry in kept] == ["good.0"]
    got = [entry.reason for entry in entries]
    assert got[:16] == [reason for _, reason in cases[:16]]
    assert got[-2:] == [None, "duplicate_key"]
    assert set(got[16:-2]) == {"bad_record"}
    assert not mark.exists()


def test_the_published_panda_subset(tmp_path: Path) -> None:
    spans = [[f"0:00:0{n}.000", f"0:00:0{n + 1}.000"] for n in range(6)]
    rows = [panda_row("many", spans, [0.5, 0.9, 0.43, 0.7, 0.8, 0.44]), panda_row("low", spans[:1], [0.2])]
    rows[0][3] = rows[0][3].replace("A bright", "A C:\\drive \\d bright", 1)
    entries = read(write_csv(tmp_path / "panda.csv", PANDA, rows), "panda-10m")
    assert reasons(entries) == {
        "many.0": "clips_of_video", "many.1": None, "many.2": "low_score", "many.3": None, "many.4": None,
        "many.5": "clips_of_video", "low.0": "low_score",
    }  # fmt: skip
    assert {entry.step for entry in entries if entry.reason} == {"select"}


@pytest.mark.parametrize("column", ["UMT_Score", "UMT-SIM"])
def test_internvid_and_its_published_subset(tmp_path: Path, column: str) -> None:
    lines = [
        {"YoutubeID": f"v{n // 2}", "Start_timestamp": "00:00:01.000", "End_timestamp": "00:00:02.5",
         "Caption": CAPTION, column: n / 10, "Aesthetic_Score": 5.5, "Language": "en", "Category": "Sports"}
        for n in range(10)
    ]  # fmt: skip
    listing = tmp_path / "internvid.jsonl"
    hostile = ['{"YoutubeID": 7}', "[]", json.dumps(lines[0] | {"End_timestamp": "00:00:01"}), "not json"]
    listing.write_text("\n".join([*map(json.dumps, lines), *hostile]))
    entries = read(listing, "internvid-flt")
    assert [entry.reason for entry in entries] == [
        *["low_score"] * 7, *[None] * 3, "bad_record", "bad_record", "bad_times", "bad_record"
    ]  # fmt: skip
    best = entries[9]
    assert best.pair is not None
    assert (best.start, best.end, best.pair.licence) == (1.0, 2.5, "CC BY-NC-SA 4.0")
    assert best.scores == {"umt_sim": 0.9, "aesthetic": 5.5, "language": "en", "category": "Sports"}
    with pytest.raises(DataError, match="matching_score"):
        read(listing, "panda-10m")


def test_webvid(tmp_path: Path) -> None:
    rows = [["12", CAPTION, "a_b"], ["13", "", "a_b"], ["14", CAPTION, "../.."], ["15", CAPTION, ""]]
    entries = read(write_csv(tmp_path / "webvid.csv", ["videoid", "name", "page_dir"], rows))
    assert [entry.reason for entry in entries] == [None, "no_caption", "outside_folder", None]
    assert entries[0].path == tmp_path / "a_b" / "12.mp4"


def add(archive: tarfile.TarFile, name: str, content: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    archive.addfile(info, io.BytesIO(content))


def test_webdataset_tars_are_unpacked_under_names_of_ours(tmp_path: Path) -> None:
    write_clip_file(tmp_path / "a.mp4")
    video = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "x.tar", "w") as archive:
        add(archive, "0001.mp4", video)
        add(archive, "0001.json", json.dumps({"caption": CAPTION, "url": "u1", "license": "CC-BY"}).encode())
        add(archive, "../../evil.mp4", video)
        add(archive, "../../evil.txt", CAPTION.encode())
        add(archive, "0003.mp4", b"", tarfile.SYMTYPE, "/etc/passwd")
        add(archive, "0003.txt", CAPTION.encode())
        add(archive, "0004.mp4", video)
        add(archive, "0004.txt", b"caf\xe9")
        add(archive, "0005.mp4", video)
    (tmp_path / "tars" / "y.tar").write_bytes(b"not a tar" * 100)
    entries = read(tmp_path / "tars")
    assert [entry.reason for entry in entries] == [
        None, None, "missing_file", "caption_encoding", "no_caption", "bad_archive"
    ]  # fmt: skip
    assert entries[0].pair is not None
    assert (entries[0].pair.source, entries[0].pair.licence) == ("u1", "CC-BY")
    assert all(e.path is None or e.path.is_relative_to(tmp_path / "unpacked") for e in entries)
    assert not (tmp_path.parent / "evil.mp4").exists()
    assert curate(tmp_path / "tars", tmp_path / "out", PLAIN).pairs_kept == 2


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a Panda-70M CSV has"):
        read(write_csv(tmp_path / "other.csv", ["a", "b"], [["1", "2"]]))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(DataError, match="is empty"):
        read(tmp_path / "empty.csv")
    with pytest.raises(DataError, match="leave --videos"):
        read(tmp_path, videos=tmp_path)
    with pytest.raises(ConfigError, match="published subset"):
        CurateSettings(preset="best")


def test_real_clips_of_a_panda_listing_in_place(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip("the real Panda-70M clips are not here")
    named = [json.loads(line) for line in (REAL / "captions.jsonl").read_text().splitlines()[:3]]
    rows = []
    for clip in named:
        video, number, _ = clip["video"].rsplit(".", 2)
        seconds = range(int(number) + 2)
        times = [f"0:{second // 60:02d}:{second % 60:02d}.000" for second in seconds]
        spans = [list(span) for span in zip(times, times[1:], strict=False)]
        captions = [clip["caption"]] * len(spans)
        rows.append(panda_row(video, spans, [0.5] * len(spans), captions))
    entries = read(write_csv(tmp_path / "panda.csv", PANDA, rows), videos=REAL)
    found = [entry for entry in entries if entry.path is not None and entry.path.exists()]
    assert [entry.path.name for entry in found if entry.path] == [clip["video"] for clip in named]
