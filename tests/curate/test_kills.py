"""Curation that is killed, and files that are damaged, many times over."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.curate.conftest import line, write_clip_file
from tests.curate.fuzz import fuzz
from xgenvideo.data.dataset import open_dataset

KILLS = 50
SCRIPT = """
import sys
from pathlib import Path
from xgenvideo.curate.run import curate
from xgenvideo.curate.settings import CurateSettings
steps = ("captions", "motion", "duplicates")
# Three slices: kills fall on each, between them, and on the processes that write their shards.
settings = CurateSettings(steps=steps, unit_pairs=5, vocabulary=300, workers=1, min_seconds=0.5)
print("begun", flush=True)
curate(Path(sys.argv[1]), Path(sys.argv[2]), settings)
"""


def start(raw: Path, out: Path) -> subprocess.Popen[bytes]:
    """A curation in a process group of its own, past its imports."""
    command = [sys.executable, "-c", SCRIPT, str(raw), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    return process


def run_killed(raw: Path, out: Path, seconds: float) -> bool:
    """Kill it and its children after `seconds`; whether it was killed before its end."""
    process = start(raw, out)
    assert process.stdout is not None
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    killed = process.poll() is None
    if killed:
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait(60)
    process.stdout.close()
    assert killed or code == 0, f"curation ended with code {code}"
    return killed


def decoded(out: Path) -> Counter[str]:
    path = out.with_name(out.name + ".work") / "scores" / "decode.jsonl"
    content = path.read_bytes() if path.exists() else b""
    return Counter(json.loads(row)["id"] for row in content.splitlines(keepends=True) if row.endswith(b"\n"))


def make_raw(raw: Path, clips: int) -> None:
    for number in range(clips):
        write_clip_file(raw / f"{number}.mp4", frames=16 + number, seed=number)
    (raw / "broken.mp4").write_bytes(b"not a video at all" * 20)
    names = [*map(str, range(clips)), "broken"]
    (raw / "pairs.jsonl").write_bytes(b"".join(line(name, f"{name}.mp4") for name in names))


@pytest.mark.slow
def test_fifty_seeded_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    make_raw(raw, 12)
    whole = start(raw, tmp_path / "whole")
    begun = time.monotonic()  # kills fall on the work, not on the imports before it
    assert whole.stdout is not None
    whole.stdout.close()
    assert whole.wait(120) == 0
    seconds = time.monotonic() - begun
    expected = open_dataset(tmp_path / "whole").fingerprint
    audit = (tmp_path / "whole" / "audit.jsonl").read_text()
    rng, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        out = tmp_path / f"out-{runs}"
        runs += 1
        before: Counter[str] = Counter()
        while run_killed(raw, out, rng.uniform(0.0, seconds) if kills < KILLS else 120):
            kills += 1
            after = decoded(out)
            assert before <= after, "finished work was lost"
            before = after
        assert set(decoded(out).values()) == {1}, "finished work was done again"
        assert open_dataset(out).fingerprint == expected
        assert (out / "audit.jsonl").read_text() == audit
        assert json.loads((out / "curation.json").read_text())["pairs_in"] == 13
    print(f"\n{kills} kills over {runs} curations")


@pytest.mark.slow
def test_ten_thousand_damaged_files_each_end_with_a_reason(tmp_path: Path) -> None:
    outcomes, restarts = fuzz(tmp_path, 10_000, seed=0)
    print(f"\n{dict(outcomes)}, {restarts} decoders started again")
    assert outcomes.total() == 10_000
    assert outcomes["decoder_crashed"] == outcomes["decode_timeout"] == 0
    assert len(outcomes) > 3
    assert outcomes["decoded"] < 10_000


def test_a_few_damaged_files_each_end_with_a_reason(tmp_path: Path) -> None:
    outcomes, _ = fuzz(tmp_path, 40, seed=1)
    assert outcomes.total() == 40
    assert outcomes["decoded"] < 40
