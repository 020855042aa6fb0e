"""A sample is traced to its source, and a source is forgotten: nothing of it stays, and everything else does."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.curate.conftest import line, write_clip_file
from xgenvideo.cli import main
from xgenvideo.cli.audit import audit_dataset
from xgenvideo.curate import takedown
from xgenvideo.curate.run import curate
from xgenvideo.curate.settings import CurateSettings, settings_from
from xgenvideo.curate.store import ScoreStore
from xgenvideo.curate.takedown import forget, trace
from xgenvideo.data.dataset import open_dataset
from xgenvideo.errors import ConfigError, DataError

PLAIN = CurateSettings(steps=(), vocabulary=300, workers=1, min_seconds=0.5)
SECRET = "A private ceremony that was never meant to be shown"


@pytest.fixture
def curated(tmp_path: Path) -> Path:
    """Six inputs of four sources; source `taken` has two kept samples and one that was dropped."""
    root = tmp_path / "raw"
    rows = [("a", "taken"), ("b", "other"), ("c", "taken"), ("d", "third"), ("e", "fourth")]
    for seed, (key, _) in enumerate(rows):
        write_clip_file(root / f"{key}.mp4", seed=seed)
    (root / "bad.mp4").touch()
    lines = [line(key, f"{key}.mp4", caption=SECRET if source == "taken" else "A square moves over the floor.",
                  source=source) for key, source in [*rows, ("bad", "taken")]]  # fmt: skip
    (root / "pairs.jsonl").write_bytes(b"".join(lines))
    curate(root, tmp_path / "out", PLAIN)
    return tmp_path / "out"


def everything(folder: Path) -> bytes:
    """All bytes of the dataset and its work folder, but the vocabulary."""
    files = [*folder.rglob("*"), *folder.with_name("out.work").rglob("*")]
    return b"".join(path.read_bytes() for path in files if path.is_file() and path.name != "tokenizer.json")


def test_a_source_is_forgotten_and_the_rest_stays(curated: Path) -> None:
    before = open_dataset(curated)
    kept = {key: before.read(key) for key in "bde"}
    gone = before.read("a").jpegs[0]
    assert gone in everything(curated)
    assert SECRET.encode() in everything(curated)
    done = forget(curated, "taken")
    assert (done.keys, done.inputs, done.clips) == (("a", "c"), 3, 2)
    after = open_dataset(curated)
    assert after.fingerprint == done.fingerprint != before.fingerprint
    assert {key: after.read(key) for key in after.keys("train")} == kept
    assert gone not in everything(curated)
    assert SECRET.encode() not in everything(curated)
    assert "decisions: 6 in = 3 kept + 3 dropped (forgotten 3)" in list(audit_dataset(curated))
    assert sorted(path.name for path in curated.parent.iterdir()) == ["out", "out.work", "raw"]
    # The same command again finds its finished work, and brings nothing back.
    assert curate(curated.parent / "raw", curated, PLAIN).dropped == {"forgotten": 3}
    assert forget(curated, "other").keys == ("b",)
    assert len((curated / "forgotten.jsonl").read_text().splitlines()) == 2


def test_a_takedown_that_dies_before_the_exchange_leaves_the_old_dataset(
    curated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_dataset(curated).fingerprint

    def die(fresh: Path, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(takedown, "_exchange", die)
        with pytest.raises(KeyboardInterrupt):
            forget(curated, "taken")
    assert open_dataset(curated).fingerprint == before
    assert len(forget(curated, "taken").keys) == 2
    assert not list(curated.parent.glob("out.forget-*"))


def test_what_killed_runs_left_of_a_source_goes_too(curated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, work = curated.parent / "raw", curated.with_name("out.work")
    gone = open_dataset(curated).read("a").jpegs[0]
    content = str(trace(curated, "a")[0]["content"])
    indexes = {path: path.read_bytes() for path in (work / "scores").glob("*.index")}
    (curated / "curation.json").rename(curated.parent / "kept.json")
    with monkeypatch.context() as patch:  # nothing that an end removes is removed
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(DataError, match="holds another dataset"):
            curate(raw, curated, replace(PLAIN, jpeg_quality=91, steps=("duplicates",)), work=work)
    (curated.parent / "kept.json").rename(curated / "curation.json")
    clip, *_ = work.glob(f"clips/{content[:2]}/{content[2:32]}-*.npz")
    clip.with_suffix(".0123abcd.tmp").write_bytes(clip.read_bytes())
    (work / "scores" / "decode.index.0123abcd.part").write_bytes(bytes.fromhex(content))
    (work / "scans").mkdir(exist_ok=True)
    (work / "scans" / "0123.npz").write_bytes(gone)
    left = [path.name for path in work.iterdir()] + [path.name for path in curated.parent.iterdir()]
    assert {"inputs", "sketches.part"} <= set(left)
    assert any(name.startswith("out.tmp-") for name in left)
    assert len(indexes) == 1
    forget(curated, "taken")
    assert sorted(path.name for path in curated.parent.iterdir()) == ["out", "out.work", "raw"]
    for trace_of_it in (gone, SECRET.encode(), bytes.fromhex(content)[:8][::-1]):
        assert trace_of_it not in everything(curated)
    assert content[2:32] not in "".join(path.name for path in work.rglob("*"))


def test_an_index_goes_with_its_scores(curated: Path) -> None:
    scores = curated.with_name("out.work") / "scores"
    store = ScoreStore(scores, "semantic", "1")
    store.put("ab" * 32, {"semantic": 0.5})
    store.close()
    assert {path.name for path in scores.glob("*.index")} >= {"semantic.index", "decode.index"}
    forget(curated, "taken")
    assert not list(scores.glob("*.index"))


def test_trace_tells_kept_and_dropped(curated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (kept,) = trace(curated, "c")
    assert (kept["status"], kept["source"], kept["start"], kept["end"]) == ("kept", "taken", 0.0, 3.0)
    assert kept["place"]["shard"] == "train-00000.tar"
    assert [decision["step"] for decision in kept["decisions"]] == ["decode"]
    (dropped,) = trace(curated, "bad")
    assert (dropped["status"], dropped["reason"]) == ("failed", "empty_file")
    assert main(["trace", "c", "--data", str(curated)]) == 0
    assert json.loads(capsys.readouterr().out) == [kept]
    assert trace(curated, "c+bad") == [kept, dropped], "the clips of a stitched sample"
    for missing in ("nothing", "c+nothing"):
        with pytest.raises(DataError, match="no input has the key or name 'nothing'"):
            trace(curated, missing)


def test_other_thresholds_take_the_stored_scores_of_an_earlier_run(curated: Path) -> None:
    raw, work = curated.parent / "raw", curated.with_name("out.work")
    seen: list[str] = []
    strict = replace(PLAIN, min_seconds=3.5)
    summary = curate(raw, curated.with_name("strict"), strict, lambda stage, *_: seen.append(stage), work=work)
    assert "decode" not in seen
    assert summary.dropped == {"empty_file": 1, "too_short": 5}
    again = curate(raw, curated.with_name("again"), PLAIN, lambda stage, *_: seen.append(stage), work=work)
    assert "decode" not in seen
    assert open_dataset(again.out).read("a") == open_dataset(curated).read("a")
    forget(again.out, "taken")
    assert SECRET.encode() not in b"".join(path.read_bytes() for path in work.rglob("*") if path.is_file())


def test_overrides_are_checked() -> None:
    assert settings_from(["curate.min_change=4", "curate.steps=motion"]) == CurateSettings(
        steps=("motion",), min_change=4.0
    )
    for wrong in ("min_change=4", "curate.none=1", "curate.fps=fast", "curate.steps=magic", "curate.fps=0"):
        with pytest.raises(ConfigError):
            settings_from([wrong])


def test_what_cannot_be_forgotten_is_refused(curated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forget", "nobody", "--data", str(curated)]) == 1
    assert "nothing came from the source 'nobody'" in capsys.readouterr().err
    for source in ("taken", "other", "third"):
        forget(curated, source)
    with pytest.raises(DataError, match="remove the folder itself"):
        forget(curated, "fourth")


def test_features_of_the_old_dataset_go_and_what_is_none_of_it_is_not_thrown_away(curated: Path) -> None:
    fingerprint = open_dataset(curated).fingerprint
    features = curated.with_name("out.features")
    old, other = (features / f"features-3-{'a' * 16}-{name[:16]}-32-1-bf16" for name in (fingerprint, "b" * 16))
    for folder in (old, other):
        folder.mkdir(parents=True)
    (curated / "checkpoints").mkdir()
    with pytest.raises(DataError, match=r"no part of the dataset \(checkpoints\).*move that elsewhere first"):
        forget(curated, "taken")
    assert open_dataset(curated).fingerprint == fingerprint
    (curated / "checkpoints").rmdir()
    forget(curated, "taken")
    assert (old.exists(), other.exists()) == (False, True)


def test_a_curation_that_keeps_nothing_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"not a video at all" * 20)
    (tmp_path / "raw" / "pairs.jsonl").write_bytes(line("a", "a.mp4"))
    assert main(["curate", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert json.loads(said.out)["dropped"] == {"not_a_video": 1}
    assert "nothing was kept" in said.err
