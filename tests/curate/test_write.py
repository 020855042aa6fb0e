"""Shards of a curation are written by several processes, and their bytes do not hang on how many."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.curate.conftest import line, write_clip_file
from xgenvideo.curate import write
from xgenvideo.curate.run import curate
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.data.dataset import Dataset, open_dataset
from xgenvideo.data.shards import publish_dataset, write_group
from xgenvideo.errors import DataError
from xgenvideo.records import Sample


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    for number in range(7):
        write_clip_file(folder / f"{number}.mp4", frames=16 + number, seed=number)
    (folder / "pairs.jsonl").write_bytes(b"".join(line(str(number), f"{number}.mp4") for number in range(7)))
    return folder


def settings(**changed: Any) -> CurateSettings:
    return CurateSettings(steps=("motion",), vocabulary=300, min_seconds=0.5, heldout_share=0.4, **changed)


def read_all(dataset: Dataset) -> dict[str, Any]:
    dataset.verify()
    samples = [dataset.read_row(dataset.row(number)) for number in range(len(dataset))]
    return {sample.key: (sample.jpegs, sample.pts, sample.split, sample.lineage) for sample in samples}


def test_shards_do_not_hang_on_the_processes_that_write_them(raw: Path, tmp_path: Path) -> None:
    found = []
    for workers in (1, 3):
        summary = curate(raw, tmp_path / f"of {workers}", settings(workers=workers, unit_pairs=2))
        assert summary.timings["write"] > 0
        found.append(open_dataset(summary.out))
    one, three = found
    assert one.fingerprint == three.fingerprint
    whole = open_dataset(curate(raw, tmp_path / "whole", settings(workers=2)).out)
    assert len(list(whole.folder.glob("train-*.tar"))) == 1 < len(list(one.folder.glob("train-*.tar")))
    assert read_all(one) == read_all(whole)
    assert [one.row(number).key for number in range(7)] == [str(number) for number in range(7)]
    assert not list(tmp_path.glob("*.tmp-*"))


def test_a_process_that_dies_while_it_writes_is_told_and_leaves_nothing(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(module: str, memory_mb: int) -> subprocess.Popen[bytes]:
        assert module == "xgenvideo.curate.write_child"
        code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(write, "start_child", dying)
    with pytest.raises(DataError, match=r"ended with code -9; is the disk full, or curate\.unit_memory_mb = 8192"):
        curate(raw, tmp_path / "out", settings(unit_pairs=2))
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.tmp-*"))
    monkeypatch.undo()
    assert curate(raw, tmp_path / "out", settings(unit_pairs=2)).pairs_kept == 7


def test_a_group_is_taken_over_under_the_next_names(tmp_path: Path) -> None:
    def samples(first: int) -> list[Sample]:
        return [
            Sample(f"k{n}", (bytes(3000),), (0.0,), f"caption {n}", f"s{n}", split="heldout" if n % 3 == 0 else "train")
            for n in range(first, first + 6)
        ]

    def fill(assembly: Any) -> None:
        for first in (0, 6):
            write_group(assembly.folder / str(first), samples(first), shard_bytes=14_000)
            assembly.take(assembly.folder / str(first))

    write.publish(tmp_path / "grouped", fill, {})
    grouped = open_dataset(tmp_path / "grouped")
    grouped.verify()
    assert [grouped.row(number).key for number in range(12)] == [f"k{number}" for number in range(12)]
    names = sorted(path.name for path in grouped.folder.glob("*.tar"))
    assert names == ["heldout-00000.tar", "heldout-00001.tar", *(f"train-{n:05d}.tar" for n in range(4))]
    assert json.loads((grouped.folder / "dataset.json").read_text())["counts"] == {"heldout": 4, "train": 8}
    assert sorted(os.listdir(grouped.folder))[-1] == "train-00003.tar"
    with pytest.raises(DataError, match="key 'k3': two samples have it"):
        publish_dataset(tmp_path / "twice", [*samples(0), *samples(3)], {})


def test_a_run_that_kept_nothing_and_was_killed_goes_on(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("audit.jsonl.part", "report.html.part"):
        (out / name).write_text("half")
    assert curate(raw, out, replace(settings(), min_seconds=100.0)).pairs_kept == 0
    (out / "curation.json.part").write_text("half")
    assert curate(raw, out, settings()).pairs_kept == 7
    assert not list(out.glob("*.part"))
