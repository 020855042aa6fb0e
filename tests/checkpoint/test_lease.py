"""One writer a run folder, and a dead writer never in the way."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from xgenvideo.checkpoint import Snapshot, save, search, take_lease
from xgenvideo.config import RunConfig
from xgenvideo.errors import CheckpointError, TrainError

HOLDER = """
import sys, time
from pathlib import Path
from xgenvideo.checkpoint.lease import take_lease
lease = take_lease(Path(sys.argv[1]))
print(lease.token, flush=True)
time.sleep(600)
"""


def test_a_second_taker_is_told_who_has_it(tmp_path: Path) -> None:
    with take_lease(tmp_path) as lease:
        assert lease.token == 1
        with pytest.raises(TrainError, match=f"--out .*: is in use by process {os.getpid()} on .*another --out"):
            take_lease(tmp_path)
        lease.check()
    with take_lease(tmp_path) as lease:
        assert lease.token == 2


def test_a_killed_holder_leaves_the_folder_free(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout as told:
        assert told.readline() == "1\n"
    with pytest.raises(TrainError, match=f"process {holder.pid} on"):
        take_lease(tmp_path)
    holder.kill()
    holder.wait()
    with take_lease(tmp_path) as lease:
        assert lease.token == 2


def test_a_holder_that_was_overtaken_publishes_nothing(small_config: RunConfig, tmp_path: Path) -> None:
    with take_lease(tmp_path) as lease:
        # As a host sees it whose file system does not carry locks between hosts.
        lease.path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "token": 2}))
        with pytest.raises(CheckpointError, match="lease 1 was taken over by process 7 on elsewhere"):
            save(tmp_path / "checkpoints", Snapshot(1, small_config, {}, {}), keep=2, lease=lease)
    assert search(tmp_path / "checkpoints").newest is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"token": "x"}'])
def test_a_spoilt_lease_file_is_taken_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "lease.json").write_text(text)
    with take_lease(tmp_path) as lease:
        lease.check()


def test_a_holder_of_another_host_that_still_beats_is_not_overtaken(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    elsewhere = {"host": "elsewhere", "pid": 7, "token": 4, "beat": 10, "released": False}
    path.write_text(json.dumps(elsewhere))
    # Silent for as long as we watch: dead, whatever its clock said.
    with take_lease(tmp_path, watch_seconds=0.3) as lease:
        assert lease.token == 5
    path.write_text(json.dumps(elsewhere))
    timer = threading.Timer(0.3, lambda: path.write_text(json.dumps(elsewhere | {"beat": 11})))
    timer.start()
    with pytest.raises(TrainError, match="process 7 on elsewhere"):
        take_lease(tmp_path, watch_seconds=10)
    path.write_text(json.dumps(elsewhere | {"released": True}))
    began = time.monotonic()
    with take_lease(tmp_path, watch_seconds=10) as lease:
        assert lease.token == 5
    assert time.monotonic() - began < 5, "a lease that was given back is taken at once"


def test_a_lease_is_renewed_and_never_over_a_successor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xgenvideo.checkpoint.lease.BEAT_SECONDS", 0.05)
    with take_lease(tmp_path) as lease:
        first = json.loads(lease.path.read_text())["beat"]
        deadline = time.monotonic() + 20
        while json.loads(lease.path.read_text())["beat"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads(lease.path.read_text())["beat"] > first
        successor = {"host": "elsewhere", "pid": 7, "token": 2}
        lease.path.write_text(json.dumps(successor))
        time.sleep(0.3)
        assert json.loads(lease.path.read_text()) == successor
    assert json.loads(lease.path.read_text()) == successor


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match=r"--out .*cannot be written \(.*\); make it writable, or give another --out"):
        take_lease(tmp_path / "file" / "run")
