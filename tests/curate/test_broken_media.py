"""Broken and hostile inputs: each gets its reason code, the run goes on, and nothing outside the folder is opened."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.curate.conftest import CAPTION, write_clip_file
from tests.curate.fuzz import OpenWatch
from xgenvideo.curate.pairs import choose_split, read_entries
from xgenvideo.curate.run import curate
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.workers import DecodePool
from xgenvideo.data.dataset import open_dataset
from xgenvideo.errors import ConfigError, DataError
from xgenvideo.records import Pair

PLAIN = CurateSettings(steps=(), vocabulary=300, workers=1, min_seconds=0.5)


def audit(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "audit.jsonl").read_text().splitlines()]


def test_every_broken_input_gets_its_reason_and_nothing_outside_is_opened(
    broken: tuple[Path, Path, dict[str, str | None]], tmp_path: Path
) -> None:
    root, outside, expected = broken
    watch = OpenWatch(outside)
    (outside / "secret.mp4").read_bytes()
    assert watch.opened(), "the watch must see an open"
    summary = curate(root, tmp_path / "out", PLAIN)
    assert not watch.opened()
    rows = audit(tmp_path / "out")
    assert {str(row["number"]): row["reason"] for row in rows} == expected
    assert summary.pairs_in == len(expected) == summary.pairs_kept + sum(summary.dropped.values())
    assert sorted(open_dataset(tmp_path / "out").keys("train")) == ["good", "rotated", "variable"]
    assert {row["status"] for row in rows} == {"kept", "dropped", "failed"}
    assert "no_video_stream" in (tmp_path / "out" / "report.html").read_text()


def test_a_folder_where_nothing_is_usable_ends_with_an_audit(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").touch()
    (tmp_path / "raw" / "a.txt").write_text(CAPTION)
    summary = curate(tmp_path / "raw", tmp_path / "out", PLAIN)
    assert (summary.pairs_kept, summary.dropped) == (0, {"empty_file": 1})
    assert not (tmp_path / "out" / "dataset.json").exists()
    write_clip_file(tmp_path / "raw" / "a.mp4")
    assert curate(tmp_path / "raw", tmp_path / "out", PLAIN).pairs_kept == 1


def test_videos_with_captions_beside_them(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    write_clip_file(root / "one two" / "a b.mp4")
    (root / "one two" / "a b.txt").write_text("A square  moves\nover the floor.")
    write_clip_file(root / "b.mp4", seed=1)
    write_clip_file(root / "c.mp4", seed=2)
    (root / "c.txt").write_bytes(b"caf\xe9 in Latin-1")
    outside = tmp_path / "secret.txt"
    outside.write_text("a secret of another folder")
    write_clip_file(root / "d.mp4", seed=3)
    (root / "d.txt").symlink_to(outside)
    entries = {entry.name: entry for entry in read_entries(root)}
    assert {name: entry.reason for name, entry in entries.items()} == {
        "b.mp4": "no_caption", "c.mp4": "caption_encoding", "d.mp4": "outside_folder", "one two/a b.mp4": None
    }  # fmt: skip
    pair = entries["one two/a b.mp4"].pair
    assert pair is not None
    assert (pair.key, pair.caption) == ("one-two-a-b", "A square moves over the floor.")


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        read_entries(tmp_path / "none")
    with pytest.raises(DataError, match="no videos"):
        read_entries(tmp_path)
    with pytest.raises(ConfigError, match="not a step"):
        CurateSettings(steps=("magic",))


def test_splits_go_by_source() -> None:
    pairs = [Pair(f"k{i}", "v.mp4", CAPTION, source=f"s{i // 4}") for i in range(4000)]
    splits = [choose_split(pair, 0.1).split for pair in pairs]
    assert all(len(set(splits[i : i + 4])) == 1 for i in range(0, 4000, 4))
    assert 0.07 < splits.count("heldout") / 4000 < 0.13
    assert choose_split(Pair("k", "v", "c", "s", split="heldout"), 0.0).split == "heldout"


def _job(path: Path, out: Path) -> dict[str, object]:
    return {"path": str(path), "out": str(out), "fps": 2.0, "max_frames": 64, "short_side": 256, "jpeg_quality": 90}


def test_a_killed_decoder_costs_one_file(tmp_path: Path) -> None:
    write_clip_file(tmp_path / "a.mp4")
    jobs = [(name, _job(tmp_path / "a.mp4", tmp_path / f"{name}.npz")) for name in "ab"]
    with DecodePool(1, seconds=20, memory_mb=3072) as pool:
        os.kill(pool.pids[0], signal.SIGKILL)
        answers = dict(pool.run(jobs))
    assert answers["a"]["reason"] == "decoder_crashed"
    assert answers["b"]["frames"] == 6
    assert (tmp_path / "b.npz").exists()


def test_a_stopped_decoder_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xgenvideo.curate.workers.GRACE_SECONDS", 0.0)
    write_clip_file(tmp_path / "a.mp4")
    with DecodePool(1, seconds=1.0, memory_mb=3072) as pool:
        os.kill(pool.pids[0], signal.SIGSTOP)
        answers = dict(pool.run([("a", _job(tmp_path / "a.mp4", tmp_path / "a.npz"))]))
    assert answers["a"]["reason"] == "decode_timeout"


def test_a_decoder_has_a_memory_limit(tmp_path: Path) -> None:
    write_clip_file(tmp_path / "a.mp4", size=1600, frames=40)
    job = _job(tmp_path / "a.mp4", tmp_path / "a.npz") | {"short_side": 1600, "fps": 8.0}
    with DecodePool(1, seconds=20, memory_mb=700) as pool:
        answers = dict(pool.run([("a", job)]))
    assert answers["a"]["reason"] == "too_large"


def test_resume_and_no_op(broken: tuple[Path, Path, dict[str, str | None]], tmp_path: Path) -> None:
    root, _, _ = broken
    whole = curate(root, tmp_path / "whole", PLAIN)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "decode" and done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curate(root, tmp_path / "out", PLAIN, stop)
    assert not (tmp_path / "out").exists()
    decoded: list[int] = []
    with (tmp_path / "out.work" / "scores" / "decode.jsonl").open("a") as file:
        file.write('{"id": "a line cut sh')
    resumed = curate(root, tmp_path / "out", PLAIN, lambda s, d, t: decoded.append(t) if s == "decode" else None)
    assert decoded
    assert decoded[0] < whole.funnel["read"] - 4
    assert open_dataset(tmp_path / "out").fingerprint == open_dataset(tmp_path / "whole").fingerprint
    shutil.rmtree(tmp_path / "out.work")
    again = curate(root, tmp_path / "out", PLAIN, lambda *_: pytest.fail("a finished run has nothing to do"))
    assert again == resumed
    with pytest.raises(DataError, match="other settings"):
        curate(root, tmp_path / "out", CurateSettings(steps=(), vocabulary=301))
