"""Stages: done once, skipped when nothing changed, redone when an input, a source file or an earlier stage changed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from xgenvideo.demo import stages as module
from xgenvideo.demo.stages import MemoryWatch, Stage, run_stages


class Journal:
    """Two stages that write a file each, and count how often they ran."""

    def __init__(self, out: Path) -> None:
        self.out, self.ran, self.said, self.fail = out, [], [], False

    def work(self, name: str) -> dict[str, Any]:
        self.ran.append(name)
        (self.out / name).mkdir(exist_ok=True)
        if self.fail:
            raise KeyboardInterrupt
        (self.out / name / "result").write_text(name, encoding="utf-8")
        return {"name": name}

    def stage(self, name: str, **inputs: Any) -> Stage:
        return Stage(name, lambda: self.work(name), name, ("errors.py",), inputs)

    def run(self, *stages: Stage) -> list[str]:
        self.ran.clear()
        run_stages(self.out, list(stages), self.said.append)
        return list(self.ran)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def test_a_finished_stage_is_skipped_and_its_result_kept(journal: Journal) -> None:
    stages = journal.stage("one", clips=4), journal.stage("two")
    assert journal.run(*stages) == ["one", "two"]
    assert journal.run(*stages) == []
    records = run_stages(journal.out, list(stages), journal.said.append)
    assert records["one"].result == {"name": "one"}
    assert records["one"].done
    assert records["one"].peak_rss_mb > 1


def test_a_changed_input_redoes_the_stage_and_all_after_it(journal: Journal) -> None:
    assert journal.run(journal.stage("one", clips=4), journal.stage("two")) == ["one", "two"]
    assert journal.run(journal.stage("one", clips=4), journal.stage("two", steps=1)) == ["two"]
    assert journal.run(journal.stage("one", clips=5), journal.stage("two", steps=1)) == ["one", "two"]


def test_changed_source_text_redoes_the_stage(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "errors.py").write_text("1", encoding="utf-8")
    monkeypatch.setattr(module, "PACKAGE", package)
    assert journal.run(journal.stage("one")) == ["one"]
    assert journal.run(journal.stage("one")) == []
    (package / "errors.py").write_text("2", encoding="utf-8")
    assert journal.run(journal.stage("one")) == ["one"]


def test_a_stage_whose_output_is_gone_is_redone(journal: Journal) -> None:
    stages = journal.stage("one"), journal.stage("two")
    journal.run(*stages)
    (journal.out / "two" / "result").unlink()
    (journal.out / "two").rmdir()
    assert journal.run(*stages) == ["two"]


def test_an_interrupted_stage_starts_afresh_unless_it_resumes(journal: Journal) -> None:
    plain = journal.stage("one")
    resuming = dataclasses.replace(journal.stage("two"), resumes=True)
    for stage, kept in ((plain, False), (resuming, True)):
        journal.fail = True
        with pytest.raises(KeyboardInterrupt):
            journal.run(stage)
        (journal.out / stage.name / "half").touch()
        journal.fail = False
        assert journal.run(stage) == [stage.name]
        assert (journal.out / stage.name / "half").exists() is kept


def test_a_killed_stage_resumes_too(journal: Journal) -> None:
    stage = dataclasses.replace(journal.stage("one"), resumes=True)
    journal.run(stage)
    path = journal.out / "stages.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({"one": {"fingerprint": values["one"]["fingerprint"]}}), encoding="utf-8")
    (journal.out / "one" / "half").touch()
    assert journal.run(stage) == ["one"]
    assert (journal.out / "one" / "half").exists()


def test_time_of_interrupted_tries_is_counted(journal: Journal) -> None:
    stage = dataclasses.replace(journal.stage("one"), resumes=True)
    journal.fail = True
    with pytest.raises(KeyboardInterrupt):
        journal.run(stage)
    values = json.loads((journal.out / "stages.json").read_text(encoding="utf-8"))
    assert values["one"]["done"] is False
    first = values["one"]["seconds"]
    journal.fail = False
    assert run_stages(journal.out, [stage], journal.said.append)["one"].seconds > first > 0


def test_a_damaged_record_only_costs_the_work(journal: Journal) -> None:
    journal.run(journal.stage("one"))
    (journal.out / "stages.json").write_text("{", encoding="utf-8")
    assert journal.run(journal.stage("one")) == ["one"]


def test_memory_is_watched() -> None:
    with MemoryWatch() as watch:
        held = bytearray(64_000_000)
        held[::4096] = b"x" * len(held[::4096])
        during = watch.peak_mb()
    assert during > 64
    assert watch.peak_mb() >= during
