"""The whole journey at its smallest: every stage really runs, every promised figure is there, a second run resumes."""

import json
from pathlib import Path

import pytest

from xgenvideo import cli
from xgenvideo.cli.audit import audit
from xgenvideo.demo.journey import DemoSize, run_demo

KEYS = {
    "pairs_in", "pairs_kept", "dropped", "filter_precision", "filter_recall", "loss_first", "loss_last", "temporal_qa",
    "twin_choice", "temporal_qa_no_video", "temporal_qa_one_frame", "temporal_qa_shuffled", "temporal_qa_reversed",
    "chance", "retrieval_t2v_r1", "retrieval_v2t_r1", "retrieval_chance_r1", "caption_cider", "seconds_by_stage",
    "peak_rss_mb", "parameters", "mfu",
}  # fmt: skip
SIZE = DemoSize("quick", 30, steps=3, defect_share=0.15, answered_clips=3, needles=1, haystack_seconds=(32,))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    run_demo(out, SIZE, print)
    return out


def test_the_summary_has_every_promised_figure(demo: Path) -> None:
    summary = json.loads((demo / "summary.json").read_text(encoding="utf-8"))
    assert set(summary) >= KEYS
    assert all(summary[key] is not None for key in KEYS)
    assert summary["pairs_in"] == 30 == summary["pairs_kept"] + sum(summary["dropped"].values())
    assert list(summary["seconds_by_stage"]) == [
        "generate", "curate", "train", "evaluate", "export", "answer", "needle", "real",
    ]  # fmt: skip
    assert 100 < summary["peak_rss_mb"] < 6000
    assert set(summary["filter_recall"]) == set(summary["filter_precision"])


def test_the_page_shows_the_answers(demo: Path) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    answers = json.loads((demo / "answers.json").read_text(encoding="utf-8"))
    assert len(answers) == 3
    for clip in answers:
        assert clip["answer_given"] in clip["options"]
        assert clip["caption_true"] in page


def test_the_page_shows_where_needles_were_found(demo: Path) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    grid = json.loads((demo / "needle.json").read_text(encoding="utf-8"))
    assert [cell["seconds"] for cell in grid["cells"]] == [32] * 5
    assert page.count("clip found by its caption") == 1
    assert page.count("/1</text>") == 5


def test_what_it_left_passes_its_own_audit(demo: Path) -> None:
    assert len(list(audit(demo / "curated" / "dataset"))) == 4
    assert any("as committed" in line for line in audit(demo / "run"))


def test_a_second_run_does_nothing_again(demo: Path) -> None:
    before = (demo / "stages.json").read_bytes()
    said: list[str] = []
    run_demo(demo, SIZE, said.append)
    assert all("done before" in line for line in said)
    assert (demo / "stages.json").read_bytes() == before


def test_the_release_is_used_from_the_command_line(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    release, video = str(demo / "release"), str(next((demo / "raw" / "videos").glob("*.mp4")))
    assert cli.main(["generate", release, video]) == 0
    assert cli.main(["generate", release, video, "What comes first?"]) == 0
    assert cli.main(["evaluate", release, "--data", str(demo / "curated" / "dataset"), "--json"]) == 0
    printed = capsys.readouterr().out
    assert '"temporal_qa"' in printed
