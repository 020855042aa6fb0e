"""Parts of a curation, each a process as on a machine of its own, make what one process makes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.curate.conftest import line, write_clip_file
from tests.curate.test_shots import scene, write_film
from xgenvideo.curate import units
from xgenvideo.curate.inputs import Description, Part
from xgenvideo.curate.parts import curate_part
from xgenvideo.curate.run import curate
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.data.dataset import open_dataset
from xgenvideo.errors import ConfigError, DataError

SETTINGS = CurateSettings(steps=("motion", "duplicates"), unit_pairs=2, vocabulary=300, workers=1, min_seconds=0.5)
SCRIPT = """
import json, sys
from pathlib import Path
from xgenvideo.curate.inputs import Part
from xgenvideo.curate.parts import curate_part
from xgenvideo.curate.settings import CurateSettings
settings = CurateSettings(steps=("motion", "duplicates"), unit_pairs=2, vocabulary=300, workers=1, min_seconds=0.5)
print(json.dumps(curate_part(Path(sys.argv[1]), Path(sys.argv[2]), Part.parse(sys.argv[3]), settings).to_dict()))
"""


def start(raw: Path, out: Path, part: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", SCRIPT, str(raw), str(out), part]
    return subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)


def ids(path: Path) -> list[str]:
    return [json.loads(row)["id"] for row in path.read_bytes().splitlines(keepends=True) if row.endswith(b"\n")]


def same(one: Path, two: Path) -> bool:
    audits = [(out / "audit.jsonl").read_bytes() for out in (one, two)]
    return audits[0] == audits[1] and open_dataset(one).fingerprint == open_dataset(two).fingerprint


def test_two_parts_at_a_time_and_one_killed_make_the_same_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out, whole = tmp_path / "raw", tmp_path / "out", tmp_path / "whole"
    for number in range(7):
        write_clip_file(raw / f"{number}.mp4", frames=16 + number, seed=number)
    write_clip_file(raw / "7.mp4", frames=16, seed=0)  # the content of the first, in another part's unit
    (raw / "8.mp4").write_bytes(b"not a video at all" * 20)
    (raw / "pairs.jsonl").write_bytes(b"".join(line(str(number), f"{number}.mp4") for number in range(9)))
    expected = curate(raw, whole, SETTINGS)
    scores = tmp_path / "out.work" / "scores"
    first, second = start(raw, out, "0/2"), start(raw, out, "1/2")
    deadline = time.monotonic() + 60
    while not ((scores / "decode-1-of-2.jsonl").exists() and ids(scores / "decode-1-of-2.jsonl")):
        assert time.monotonic() < deadline, "the part decodes nothing"
        time.sleep(0.01)
    os.killpg(second.pid, signal.SIGKILL)
    second.communicate()
    before = ids(scores / "decode-1-of-2.jsonl")
    answer = json.loads(first.communicate(timeout=60)[0])
    assert answer == {"part": "0/2", "units": 3, "pairs": 5, "crashed": 0}
    again = curate_part(raw, out, Part(1, 2), SETTINGS)
    assert (again.units, again.pairs, again.crashed) == (2, 4, 0)
    written = ids(scores / "decode-1-of-2.jsonl")
    assert written[: len(before)] == before, "finished work was done again"
    assert len(set(written)) == len(written) <= 4
    assert not out.exists()
    # All units are finished: neither a part nor the run without one starts a child.
    monkeypatch.setattr(units, "start_child", lambda *_: pytest.fail("a finished unit was worked on again"))
    assert curate_part(raw, out, Part(1, 2), SETTINGS) == again
    summary = curate(raw, out, SETTINGS)
    assert (summary.dropped, summary.splits) == (expected.dropped, expected.splits)
    assert same(out, whole)
    assert not ids(scores / "decode.jsonl")


def test_parts_of_more_than_there_is_to_do_and_a_part_that_never_ran(tmp_path: Path) -> None:
    raw, out, whole = tmp_path / "raw", tmp_path / "out", tmp_path / "whole"
    for number in range(3):
        write_clip_file(raw / f"{number}.mp4", frames=16 + number, seed=number)
    (raw / "pairs.jsonl").write_bytes(b"".join(line(str(number), f"{number}.mp4") for number in range(3)))
    assert curate_part(raw, out, Part(5, 64), SETTINGS).units == 0
    assert curate_part(raw, out, Part(0, 64), SETTINGS).pairs == 2
    curate(raw, whole, SETTINGS)
    curate(raw, out, SETTINGS)
    assert same(out, whole)


def test_shots_are_found_in_parts(tmp_path: Path) -> None:
    raw, out, whole = tmp_path / "raw", tmp_path / "out", tmp_path / "whole"
    raw.mkdir()
    for name, seeds in (("one", (1, 2)), ("two", (3, 4)), ("three", (5, 6))):
        write_film(raw / f"{name}.mp4", np.concatenate([scene(seed, 30, 1) for seed in seeds]))
    (raw / "pairs.jsonl").write_bytes(b"".join(line(name, f"{name}.mp4") for name in ("one", "two", "three")))
    settings = CurateSettings(**(SETTINGS.to_dict() | {"split_shots": "light", "steps": ("motion",)}))
    parts = [curate_part(raw, out, Part(number, 2), settings) for number in (1, 0)]
    assert [(part.units, part.pairs) for part in parts] == [(1, 2), (2, 4)]
    curate(raw, whole, settings)
    curate(raw, out, settings)
    assert same(out, whole)
    assert len(ids(tmp_path / "out.work" / "scores" / "shots-0-of-2.jsonl")) == 2


def test_two_at_once_in_one_work_folder_are_refused(tmp_path: Path) -> None:
    raw, work = tmp_path / "raw", tmp_path / "work"
    for number in range(3):
        write_clip_file(raw / f"{number}.mp4", frames=16 + number, seed=number)
    (raw / "pairs.jsonl").write_bytes(b"".join(line(str(number), f"{number}.mp4") for number in range(3)))
    tried: list[str] = []

    def try_another(stage: str, *_: int) -> None:
        if stage == "decode" and not tried:
            with pytest.raises(DataError, match="another curation is at work there; wait for its end, or give another"):
                curate(raw, tmp_path / "other", SETTINGS, work=work)
            tried.append(stage)
            assert curate_part(raw, tmp_path / "out", Part(1, 2), SETTINGS, work=work).pairs == 1

    assert curate(raw, tmp_path / "out", SETTINGS, try_another, work=work).pairs_in == 3
    assert tried
    curate(raw, tmp_path / "other", SETTINGS, work=work)
    assert same(tmp_path / "out", tmp_path / "other")


@pytest.mark.parametrize("preset", ["", "panda-10m"])
def test_a_source_that_is_refused_leaves_no_inputs(tmp_path: Path, preset: str) -> None:
    raw = tmp_path / "raw"
    if preset:
        write_clip_file(raw / "0.mp4")
        (raw / "pairs.jsonl").write_bytes(line("0", "0.mp4"))
    with pytest.raises(DataError, match="no input has the score" if preset else "is not a folder"):
        curate(raw, tmp_path / "out", CurateSettings(preset=preset))
    assert [path.name for path in (tmp_path / "out.work").iterdir()] == ["inputs.lock"]


def test_a_part_looks_at_no_file_of_another_parts_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw"
    for number in range(3):
        write_clip_file(raw / f"{number}.mp4", frames=16 + number, seed=number)
    (raw / "pairs.jsonl").write_bytes(b"".join(line(str(number), f"{number}.mp4") for number in range(3)))
    seen: list[str] = []
    add = Description.add
    monkeypatch.setattr(Description, "add", lambda self, entry: (seen.append(entry.name), add(self, entry))[1])
    curate_part(raw, tmp_path / "out", Part(1, 2), SETTINGS)
    assert set(seen) == {"2"}


@pytest.mark.parametrize("text", ["", "3", "4/4", "-1/4", "a/b", "1/2/3", "1/ 2", "\u0663/4"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("write NUMBER/COUNT")):
        Part.parse(text)
    assert Part.parse("3/64") == Part(3, 64)
