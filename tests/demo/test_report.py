"""The report page: complete without any other file, and nothing from the data is taken for markup."""

import io
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgenvideo.demo.charts import Line, line_chart, ticks
from xgenvideo.demo.report import Answered, ReportData, confusion_table, figure, strip, write_report
from xgenvideo.demo.score import Target
from xgenvideo.records import Sample

SUMMARY: dict[str, Any] = {
    "pairs_in": 20,
    "pairs_kept": 17,
    "dropped": {"watermark": 3},
    "filter_counts": {"watermark": {"planted": 3, "dropped": 3, "right": 2}},
    "filter_confusion": {"none": {"kept": 16, "watermark": 1}, "watermark": {"watermark": 2, "kept": 1}},
    "filter_precision": {"watermark": 2 / 3},
    "filter_recall": {"watermark": 2 / 3},
    "loss_first": 7.1,
    "loss_last": 1.2,
    "temporal_qa": 0.9,
    "temporal_qa_no_video": 0.5,
    "temporal_qa_one_frame": 0.5,
    "temporal_qa_shuffled": 0.5,
    "temporal_qa_reversed": 0.3,
    "temporal_qa_reversed_direction_order": 0.1,
    "twin_choice": 0.9,
    "chance": 0.49,
    "retrieval_t2v_r1": 0.3,
    "retrieval_chance_r1": 0.01,
    "seconds_by_stage": {"generate": 10.0, "train": 90.0},
    "peak_rss_mb": 900.0,
    "parameters": 1_234_567,
}
METRICS = [{"step": step, "loss_next_token": 7 / step, "lr": 1e-3, "gates": {"0": 0.1 * step}} for step in range(1, 6)]
METRICS[-1]["heldout_loss"] = 1.5


def sample(frames: int) -> Sample:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((32, 48, 3), dtype=np.uint8)).save(stream, format="JPEG")
    return Sample("clip", (stream.getvalue(),) * frames, tuple(i / 2 for i in range(frames)), "a caption", "test")


def answered(caption: str) -> Answered:
    pictures, times = strip(sample(3))
    return Answered("clip", 1.0, pictures, times, caption, "it moves", "Which?", ("left", "right"), "left", "right")


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def written(path: Path, caption: str = "a red circle") -> tuple[str, Page]:
    target = Target("twin choice", "at least 0.85", 0.9, True)
    write_report(path, ReportData("Demo", SUMMARY, [target], METRICS, [answered(caption)], {"why": "not installed"}))
    text = path.read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    return text, page


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    text, page = written(tmp_path / "report.html")
    assert page.links
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert "url(" not in text
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3
    assert "90.0\N{NO-BREAK SPACE}%" in text
    assert "1,234,567" in text
    assert "sum, held out" in text


def test_text_of_the_data_is_never_markup(tmp_path: Path) -> None:
    text, page = written(tmp_path / "report.html", caption="<script>alert(1)</script>")
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text


def test_reasons_of_one_defect_share_a_column() -> None:
    table = confusion_table({"none": {"kept": 5, "still": 1}, "broken": {"truncated": 2, "empty_file": 1, "kept": 1}})
    assert table["columns"] == ["kept", "still", "broken file"]
    assert [cell["count"] for cell in table["rows"][1]["cells"]] == [1, 0, 3]
    assert [cell["right"] for cell in table["rows"][1]["cells"]] == [False, False, True]


def test_a_strip_has_evenly_spaced_frames() -> None:
    pictures, times = strip(sample(21), count=5)
    assert times == (0.0, 2.5, 5.0, 7.5, 10.0)
    assert len(pictures) == 5
    assert strip(sample(1))[1] == (0.0,)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1.2, 7.1), (-3, 4), (5, 5), (0, 0), (1e-4, 2e-3)])
def test_ticks_enclose_and_are_few(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 8
    assert all(later > earlier for earlier, later in zip(found, found[1:], strict=False))


def test_lines_stay_inside_the_drawing_and_skip_what_is_not_a_number() -> None:
    svg = line_chart([Line("loss", [(1, 7.0), (2, math.nan), (3, 1.0)])])
    points = re.findall(r'points="([^"]+)"', svg)[0].split()
    assert len(points) == 2
    for point in points:
        x, y = map(float, point.split(","))
        assert 0 <= x <= 560
        assert 0 <= y <= 250
    assert line_chart([Line("nothing", [])]) == ""


def test_figures_are_for_people() -> None:
    values = (1234567, 0.12345, 98765.4, True, None, "x")
    assert [figure(value) for value in values] == ["1,234,567", "0.123", "98,765", "True", "not measured", "x"]
