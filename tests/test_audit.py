"""`xgv audit` says what it checked, and refuses every way in which the books do not balance."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from xgenvideo import cli
from xgenvideo.cli.audit import audit
from xgenvideo.data.shards import write_dataset
from xgenvideo.errors import DataError
from xgenvideo.records import Sample

JPEG = cv2.imencode(".jpg", np.zeros((16, 16, 3), dtype=np.uint8))[1].tobytes()


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two kept samples, one dropped."""
    folder = tmp_path / "dataset"
    samples = [Sample(key, (JPEG, JPEG), (0.0, 0.5), f"clip {key}", "test", split="train") for key in ("a", "b")]
    write_dataset(folder, samples, {})
    write_lines(folder, [("a", None), ("b", None), ("c", "watermark")])
    return folder


def write_lines(folder: Path, outcomes: list[tuple[str, str | None]]) -> None:
    lines = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in outcomes]
    (folder / "audit.jsonl").write_text("".join(lines), encoding="utf-8")


def test_a_sound_dataset_is_told_in_sums(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["audit", str(dataset)]) == 0
    told = capsys.readouterr().out
    assert "2 read back, 4 frames" in told
    assert "3 in = 2 kept + 1 dropped (watermark 1)" in told


def damage_shard(folder: Path) -> None:
    shard = next(folder.glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)


def damage_manifest(folder: Path) -> None:
    (folder / "manifest.parquet").write_bytes((folder / "manifest.parquet").read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        damage_shard,
        damage_manifest,
        lambda folder: (folder / "audit.jsonl").unlink(),
        lambda folder: write_lines(folder, [("a", None), ("c", "watermark")]),
        lambda folder: write_lines(folder, [("a", None), ("b", "still"), ("c", "watermark")]),
        lambda folder: write_lines(folder, [("a", None), ("a", None), ("b", None)]),
        lambda folder: write_lines(folder, [("a", None), ("b", None), ("x", None)]),
    ],
    ids=["shard", "manifest", "no audit", "forgotten", "dropped but there", "twice", "kept but not there"],
)
def test_books_that_do_not_balance_are_refused(dataset: Path, damage: Callable[[Path], object]) -> None:
    damage(dataset)
    with pytest.raises(DataError, match=str(dataset)):
        list(audit(dataset))


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a dataset"):
        list(audit(tmp_path))
