"""The generator: twins with the same pictures in another order, questions that flip, defects that are labelled."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xgenvideo.data.generate import GeneratedSummary, encode_video, generate, key_frames, make_twins, render
from xgenvideo.data.generate.defects import DEFECTS, is_heldout, plan
from xgenvideo.data.generate.render import FPS, STATE_FRAMES
from xgenvideo.data.generate.scenes import MAX_STATES, MIN_STATES, SHORT_STATES
from xgenvideo.data.generate.story import COLOURS, KINDS
from xgenvideo.data.video import probe, sample_video
from xgenvideo.errors import ConfigError, DataError, MediaError

SCENES = [make_twins(7, index) for index in range(400)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> GeneratedSummary:
    return generate(tmp_path_factory.mktemp("generated") / "raw", clips=64, seed=3, defect_share=0.5, processes=1)


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    assert make_twins(7, 11) == SCENES[11]
    assert make_twins(8, 11) != SCENES[11]


def test_twins_have_the_same_states_in_another_order() -> None:
    for first, second in SCENES:
        assert Counter(first.states) == Counter(second.states)
        assert first.states != second.states
        assert first.background == second.background
        assert first.caption != second.caption


def test_twins_have_the_same_pictures_in_another_order() -> None:
    for first, second in SCENES[:12]:
        one, two = key_frames(first), key_frames(second)
        assert Counter(f.tobytes() for f in one) == Counter(f.tobytes() for f in two)
        assert not np.array_equal(one, two)


def test_the_middle_frame_and_the_length_tell_nothing() -> None:
    for first, second in SCENES:
        count = len(first.states)
        assert count == len(second.states)
        assert count % 2 == 1
        assert MIN_STATES <= count <= MAX_STATES
        assert first.states[count // 2] == second.states[count // 2]


def test_most_clips_are_short() -> None:
    assert np.mean([len(first.states) < SHORT_STATES for first, _ in SCENES]) >= 0.75


def test_every_question_has_two_options_and_flips() -> None:
    for first, second in SCENES:
        assert 2 <= len(first.questions) <= 4
        assert len(first.questions) == len(second.questions)
        for one, two in zip(first.questions, second.questions, strict=True):
            assert (one.text, one.options, one.kind) == (two.text, two.options, two.kind)
            assert len(set(one.options)) == 2
            assert one.answer != two.answer


def test_a_bag_of_frames_and_a_reader_without_video_score_half() -> None:
    def guess(pictures: Counter[bytes], text: str, options: tuple[str, ...]) -> int:
        return hash((frozenset(pictures.items()), text, options)) % 2

    right = []
    for twins in SCENES[:12]:
        for scene in twins:
            bag = Counter(frame.tobytes() for frame in key_frames(scene))
            right += [guess(bag, q.text, q.options) == q.answer for q in scene.questions]
    assert np.mean(right) == 0.5


def test_kinds_come_often_and_options_in_both_orders() -> None:
    questions = [question for first, _ in SCENES for question in first.questions]
    kinds = Counter(question.kind for question in questions)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 0.08 * len(questions)
    firsts: dict[frozenset[str], list[bool]] = {}
    for question in questions:
        firsts.setdefault(frozenset(question.options), []).append(question.options[0] == min(question.options))
    for pair in ({"before", "after"}, {"to the left", "to the right"}, {"once", "twice"}, {"no", "yes"}):
        assert 0.25 < np.mean(firsts[frozenset(pair)]) < 0.75
    assert 0.45 < np.mean([question.answer for question in questions]) < 0.55


def test_direction_says_where_the_thing_goes() -> None:
    seen = 0
    for twins in SCENES:
        for scene in twins:
            things = {placed.thing for state in scene.states for placed in state}
            for question in scene.questions:
                if question.text.startswith(("Which way does", "In which direction")) and " hits " not in scene.caption:
                    thing = next(t for t in things if t.name in question.text)
                    path = [(p.x, p.y) for state in scene.states for p in state if p.thing == thing]
                    (x, y), (to_x, to_y) = path[0], path[-1]
                    answer = question.options[question.answer]
                    assert answer == {
                        (True, True): "to the right", (True, False): "to the left",
                        (False, True): "down", (False, False): "up",
                    }[abs(to_x - x) > abs(to_y - y), (to_x - x) + (to_y - y) > 0]  # fmt: skip
                    seen += 1
    assert seen > 60


def test_once_is_one_run_of_states_and_twice_is_two() -> None:
    seen = 0
    for twins in SCENES:
        for scene in twins:
            for question in scene.questions:
                if question.text.startswith(("How many times does", "How often")) and "turn" not in question.text:
                    name = question.text.split("does ")[1].rsplit(" appear?")[0].rsplit(" show up?")[0]
                    there = [any(p.thing.name == name for p in state) for state in scene.states]
                    runs = sum(now and not before for before, now in zip([False, *there], there, strict=False))
                    assert question.options[question.answer] == {1: "once", 2: "twice", 3: "three times"}[runs]
                    seen += 1
    assert seen > 50


def test_gap_lasts_as_long_as_the_answer_says() -> None:
    seen = 0
    for twins in SCENES:
        for scene in twins:
            for question in scene.questions:
                if question.text.startswith("How long is the gap before"):
                    name = question.text.removeprefix("How long is the gap before ").rstrip("?")
                    moving = [[p for p in state if p.y < 0.7 or len(state) == 1] for state in scene.states]
                    there = [any(p.thing.name == name for p in state) for state in scene.states]
                    blanks = 0
                    for state in moving[: there.index(True)][::-1]:
                        if any(
                            p.thing.name != name and sum(q == p for s in scene.states for q in s) < 10 for p in state
                        ):
                            break
                        blanks += 1
                    assert f"about {blanks // 2} second" in question.options[question.answer]
                    seen += 1
    assert seen > 10


def test_captions_use_few_words() -> None:
    words = {
        word.strip(".,?").lower()
        for first, second in SCENES
        for text in (first.caption, second.caption, *(q.text + " " + " ".join(q.options) for q in first.questions))
        for word in text.split()
    }
    assert set(COLOURS) <= words
    assert len(words) < 250


def test_render_puts_every_key_state_at_half_seconds() -> None:
    scene = SCENES[0][0]
    frames = render(scene)
    assert frames.dtype == np.uint8
    assert frames.shape == (len(scene.states) * STATE_FRAMES, 256, 256, 3)
    assert np.array_equal(frames[::STATE_FRAMES], key_frames(scene))


def test_a_written_clip_decodes_to_its_key_states(tmp_path: Path) -> None:
    decoded = []
    for name, scene in zip("ab", SCENES[2], strict=True):
        encode_video(tmp_path / f"{name}.mp4", render(scene))
        video = sample_video(tmp_path / f"{name}.mp4", fps=2.0, max_frames=MAX_STATES)
        assert len(video.frames) == len(scene.states)
        assert np.allclose(video.pts, np.arange(len(scene.states)) / 2)
        assert np.abs(video.frames.astype(int) - key_frames(scene)).mean() < 3
        decoded.append(Counter(frame.tobytes() for frame in video.frames))
    assert decoded[0] == decoded[1], "the codec gives the order away"
    assert probe(tmp_path / "a.mp4").fps == FPS


def test_generate_writes_what_it_says(made: GeneratedSummary) -> None:
    pairs = lines(made.folder / "pairs.jsonl")
    assert made.clips == len(pairs) == 64
    assert len({pair["key"] for pair in pairs}) == 64
    assert made.seconds > 8 * 64
    by_key = {pair["key"]: pair for pair in pairs}
    for pair in pairs:
        assert (made.folder / pair["video"]).exists()
        assert pair["split"] == ("heldout" if is_heldout(int(pair["source"].removeprefix("gen-"))) else "train")
        if pair["twin"] is not None:
            assert by_key[pair["twin"]]["twin"] == pair["key"]
            assert by_key[pair["twin"]]["source"] == pair["source"]
    assert not list(made.folder.rglob("*.part"))
    heldout = sum(is_heldout(scene) for scene in range(1000)) / 1000
    assert heldout == pytest.approx(0.1)


def test_defects_are_there_and_labelled(made: GeneratedSummary, tmp_path: Path) -> None:
    pairs = {pair["key"]: pair for pair in lines(made.folder / "pairs.jsonl")}
    truth = {line["key"]: line["defects"][0] for line in lines(made.folder / "defects.jsonl")}
    assert set(truth.values()) == set(DEFECTS)
    assert sum(made.defects.values()) == len(truth)
    for key, defect in truth.items():
        pair = pairs[key]
        assert pair["split"] == "train"
        clean = make_twins(3, int(pair["source"].removeprefix("gen-")))[key.removesuffix("-copy").endswith("b")]
        path = made.folder / pair["video"]
        if defect == "broken":
            with pytest.raises(MediaError):
                sample_video(path)
            continue
        encode_video(tmp_path / "clean.mp4", render(clean))
        frames, kept = (sample_video(file, max_frames=MAX_STATES).frames for file in (path, tmp_path / "clean.mp4"))
        assert np.array_equal(frames, kept) == (defect in ("swapped_caption", "foreign_caption")), (key, defect)
        assert (pair["caption"] != clean.caption) == (defect in ("swapped_caption", "foreign_caption"))
        if defect == "still":
            assert np.abs(frames[0].astype(int) - frames[-1]).max() == 0
        if defect == "swapped_caption":
            assert not clean.colours & set(pair["caption"].lower().split())
        if defect == "near_duplicate":
            assert pair["caption"] == pairs[key.removesuffix("-copy")]["caption"]
            assert key.removesuffix("-copy") not in truth


def test_plan_keeps_count_and_share() -> None:
    for clips in (2, 3, 50, 101, 1000):
        made = plan(clips, 0, 0.15)
        copies = sum(plant.defect == "near_duplicate" for plant in made.plants)
        assert 2 * made.scenes + copies == clips
        assert len({plant.key for plant in made.plants}) == len(made.plants)
    assert 0.13 < len(plan(1000, 0, 0.15).plants) / 850 < 0.17
    assert plan(100, 0, 0.0).plants == ()


def test_processes_do_not_matter_and_a_cut_short_run_is_finished(made: GeneratedSummary, tmp_path: Path) -> None:
    first = generate(tmp_path / "one", 12, seed=5, defect_share=0.4, processes=1)
    generate(tmp_path / "two", 12, seed=5, defect_share=0.4, processes=2)

    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    whole = content(tmp_path / "one")
    assert whole == content(tmp_path / "two")
    (tmp_path / "one/pairs.jsonl").unlink()
    next((tmp_path / "one/videos").iterdir()).unlink()
    again = generate(tmp_path / "one", 12, seed=5, defect_share=0.4, processes=1)
    assert again == first
    assert content(tmp_path / "one") == whole


def test_another_request_or_a_foreign_folder_is_refused(made: GeneratedSummary, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another folder"):
        generate(made.folder, clips=8)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="not made by this generator"):
        generate(tmp_path, clips=8)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("clips", {"clips": 0}),
        ("clips", {"clips": 3, "defect_share": 0.0}),
        ("defect_share", {"clips": 8, "defect_share": 0.9}),
        ("processes", {"clips": 8, "processes": -1}),
    ],
)
def test_impossible_numbers_are_refused(tmp_path: Path, setting: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=setting):
        generate(tmp_path / "new", **values)
    assert not (tmp_path / "new").exists()
