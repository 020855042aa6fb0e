"""Marks that hold no letters: drawn over what moves, over what stands still, half-transparent; and what is none."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.text_overlay import judge_text
from xgenvideo.curate.watermark import is_mark, measure_marks, overlay_density

SETTINGS = CurateSettings()
SIZE = 192


def texture(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(80, 150, (24, 24, 3), dtype=np.uint8)
    return cv2.resize(coarse, (SIZE + 96, SIZE + 96), interpolation=cv2.INTER_CUBIC)


def panning(seed: int = 0, frames: int = 12) -> np.ndarray:
    """[F 192 192 3]: a camera that moves over a textured ground."""
    ground = texture(seed)
    return np.stack([ground[7 * n : 7 * n + SIZE, 5 * n : 5 * n + SIZE] for n in range(frames)]).copy()


def resting(seed: int = 0, frames: int = 12) -> np.ndarray:
    """[F 192 192 3]: a fixed camera before the same ground, and a ball that rolls through."""
    clip = np.repeat(texture(seed)[None, :SIZE, :SIZE], frames, axis=0)
    for number, frame in enumerate(clip):
        cv2.circle(frame, (20 + 14 * number, 100), 14, (220, 60, 40), -1, cv2.LINE_AA)
    return clip


def emblem(frames: np.ndarray, strength: float = 1.0) -> np.ndarray:
    drawn = frames.copy()
    for frame in drawn:
        cv2.circle(frame, (160, 30), 15, (250, 250, 250), 4, cv2.LINE_AA)
        cv2.line(frame, (145, 30), (175, 30), (20, 20, 20), 3)
    return np.stack([cv2.addWeighted(a, strength, b, 1 - strength, 0) for a, b in zip(drawn, frames, strict=True)])


def found(frames: np.ndarray) -> list[dict[str, object]]:
    return [mark for mark in measure_marks(frames) if is_mark(mark, SETTINGS)]


@pytest.mark.parametrize("scene", [panning, resting])
@pytest.mark.parametrize("seed", range(3))
def test_a_scene_holds_no_mark_and_an_emblem_over_it_is_one(scene: Callable[[int], np.ndarray], seed: int) -> None:
    assert found(scene(seed)) == []
    marks = found(emblem(scene(seed)))
    assert marks
    assert marks[0]["place"] == pytest.approx([144 / SIZE, 14 / SIZE, 176 / SIZE, 46 / SIZE], abs=0.03)
    assert marks[0]["present"] == 1.0
    decision = judge_text([], SETTINGS, measure_marks(emblem(scene(seed))))
    assert decision.reason == "watermark"
    assert decision.scores["watermark_density"] == pytest.approx(36 * 36 / SIZE**2, rel=0.4)


def test_a_half_transparent_mark_is_one() -> None:
    assert found(emblem(panning(), 0.45))


def test_a_thing_that_comes_to_rest_a_bar_and_an_edge_are_no_marks() -> None:
    late = panning()
    late[6:] = emblem(late[6:])
    assert found(late) == []
    barred = panning()
    barred[:, :24] = 0
    barred[:, -24:] = 0
    assert found(barred) == []
    table = panning()
    table[:, 120:, 60:110] = np.linspace(250, 90, SIZE - 120)[None, :, None, None]  # one side only
    assert found(table) == []


def test_a_threshold_is_applied_to_stored_marks() -> None:
    marks = measure_marks(emblem(panning()))
    strict = CurateSettings(max_watermark_density=0.5)
    assert judge_text([], SETTINGS, marks).reason == "watermark"
    assert judge_text([], strict, marks).reason is None


def test_density_is_area_times_the_frames_present() -> None:
    quarter = {"place": [0.0, 0.0, 0.5, 0.5], "present": 0.5}
    assert overlay_density([quarter], []) == 0.125
    assert overlay_density([], [[[0.5, 0.5, 1.0, 1.0]], []]) == 0.125
    assert overlay_density([quarter], [[[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 0.5, 0.5]]]) == 0.25
    assert overlay_density([], []) == 0.0


def test_two_frames_say_nothing() -> None:
    assert measure_marks(emblem(panning(frames=2))) == []
