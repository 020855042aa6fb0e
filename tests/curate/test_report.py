"""The report page: what each step took, and histograms whose thresholds can be tried."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

from xgenvideo.curate.inputs import Item
from xgenvideo.curate.pairs import Entry
from xgenvideo.curate.report import write_report
from xgenvideo.curate.settings import CurateSettings, Decision

SUMMARY: dict[str, Any] = {
    "pairs_in": 4,
    "pairs_kept": 3,
    "pairs_failed": 0,
    "splits": {"train": 3},
    "dropped": {"too_short": 1},
    "funnel": {"inputs": 4, "decode": 3, "motion": 3},
    "timings": {"decode": 0.5, "motion": 0.001, "write": 1.0},
}


def page(folder: Path) -> str:
    items = [Item(number, Entry(f"clip {number}")) for number in range(4)]
    for item, seconds in zip(items, (0.5, 3.0, 5.0, 5.0), strict=True):
        reason = "too_short" if seconds < 1 else None
        item.decisions.append(Decision("decode", reason, {"seconds": seconds}))
    write_report(folder / "report.html", items, SUMMARY, CurateSettings(min_seconds=1.0), lambda content: None)  # type: ignore[arg-type, return-value]
    return (folder / "report.html").read_text(encoding="utf-8")


def test_each_step_says_what_it_took_and_its_rate(tmp_path: Path) -> None:
    rows = re.findall(r"<tr>(.*?)</tr>", page(tmp_path), re.DOTALL)
    cells = {values[0]: values for row in rows if (values := re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL))}
    assert (cells["decode"][1], cells["decode"][3], cells["decode"][4]) == (
        "3",
        "0.5",
        "8",
    )  # 4 inputs in half a second
    assert cells["motion"][4] == "3,000"
    assert cells["inputs"][3:] == ["", ""]


def test_a_slider_knows_every_input_and_its_setting(tmp_path: Path) -> None:
    text = page(tmp_path)
    [counts] = re.findall(r'data-counts="([^"]*)"', text)
    found = json.loads(unescape(counts))
    assert (len(found), sum(found), found[0], found[-1]) == (24, 4, 1, 2)
    assert 'data-setting="min_seconds" data-keeps="above" data-whole="false"' in text
    assert 'data-from="0.5" data-to="5.0"' in text
    [at] = re.findall(r'<input type="range" min="0" max="24" step="1"\s+value="(\d+)"', text)
    assert at == "3"  # 1.0 lies 11 % of the way
