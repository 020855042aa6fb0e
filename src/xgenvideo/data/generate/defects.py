"""Defects planted on purpose, with their ground truth, so that curation's filters can be scored."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.data.generate.foreign import FOREIGN_CAPTIONS
from xgenvideo.data.generate.render import STATE_FRAMES, draw_frames, draw_ground, draw_state
from xgenvideo.data.generate.scenes import make_twins
from xgenvideo.data.generate.story import Scene, pick
from xgenvideo.records import Pair

DEFECTS = (
    "watermark",
    "subtitle",
    "swapped_caption",
    "foreign_caption",
    "still",
    "joined",
    "near_duplicate",
    "broken",
)
MARKS = ("STOCKPIX", "VIDEOBANK", "CLIPSHOP", "PREVIEW", "SAMPLE COPY", "FOOTAGE24", "PIXELMINE.COM")
SUBTITLES = (
    "Thank you for watching",
    "See you next week",
    "Where did you put it?",
    "I will be right back",
    "Do not forget to subscribe",
    "This is the best part",
    "He never came home",
    "Welcome to the show",
    "What a lovely day",
    "Let us begin with the news",
)
BREAKS = ("truncated", "empty", "text", "garbage")

Encode = Callable[..., None]
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Plant:
    """One defect of one clip: of twin 0 or 1 of a scene. `key` is the clip that is at fault."""

    scene: int
    twin: int
    defect: str
    key: str


@dataclass(frozen=True)
class Plan:
    """How many scenes there are, and what is planted in them."""

    scenes: int
    plants: tuple[Plant, ...]


def is_heldout(scene: int) -> bool:
    """Whether a scene is kept for evaluation: 1 of 10, spread evenly."""
    return scene % 10 == 3


def plan(clips: int, seed: int, share: float) -> Plan:
    """Spread defects over `share` of the training clips, every kind about equally often.

    A near duplicate is a further clip, so there are (clips - near duplicates) / 2 scenes. What is copied is clean.
    """
    rng = np.random.default_rng([seed, 0x0DEFEC7])
    planted = round(share * 0.9 * clips)
    kinds = [DEFECTS[(i + 6) % len(DEFECTS)] for i in range(planted)]  # near_duplicate first: few clips have one too
    copies = kinds.count("near_duplicate")
    if (clips - copies) % 2:
        kinds, copies = ([*kinds, "near_duplicate"], copies + 1) if clips - copies > 2 else (kinds, copies)
    scenes = (clips - copies) // 2
    slots = [(scene, twin) for scene in range(scenes) if not is_heldout(scene) for twin in (0, 1)]
    chosen = [slots[i] for i in rng.permutation(len(slots))[: len(kinds)].tolist()]
    plants = []
    for (scene, twin), kind in zip(chosen, kinds, strict=False):
        key = f"gen-{scene:06d}-{'ab'[twin]}" + ("-copy" if kind == "near_duplicate" else "")
        plants.append(Plant(scene, twin, kind, key))
    return Plan(scenes, tuple(sorted(plants, key=lambda plant: plant.key)))


def rewrite(pair: Pair, plant: Plant, seed: int) -> Pair:
    """The pair with the caption that its defect gives it."""
    rng = _generator(plant, seed)
    if plant.defect == "swapped_caption":
        own = make_twins(seed, plant.scene)[plant.twin]
        return dataclasses.replace(pair, caption=_stranger(rng, own, seed).caption)
    if plant.defect == "foreign_caption":
        return dataclasses.replace(pair, caption=pick(rng, FOREIGN_CAPTIONS))
    return pair


def copy_of(pair: Pair, plant: Plant) -> Pair:
    """The pair of a near duplicate: another file, the same words."""
    return dataclasses.replace(pair, key=plant.key, video=f"videos/{plant.key}.mp4", twin=None)


def draw(path: Path, scene: Scene, plant: Plant, seed: int, encode: Encode) -> None:
    """Write the file of a clip with a defect. Defects of the caption leave the pictures as they are."""
    rng = _generator(plant, seed)
    frames = draw_frames(scene)
    if plant.defect == "broken":
        _break(path, frames, rng, encode)
    elif plant.defect == "near_duplicate":
        encode(path, _worsen(frames, rng), quality=int(rng.integers(28, 33)), group=32)
    else:
        changed = {"watermark": _mark, "subtitle": _subtitle, "still": _still, "joined": _join}.get(plant.defect)
        encode(path, frames if changed is None else changed(scene, frames, rng, seed))


def _generator(plant: Plant, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, plant.scene, plant.twin, DEFECTS.index(plant.defect)])


def _stranger(rng: np.random.Generator, scene: Scene, seed: int) -> Scene:
    """A scene with none of this one's colours, from numbers that no generated clip reaches."""
    while True:
        other = make_twins(seed, 10_000_000 + int(rng.integers(1_000_000)))[0]
        if not other.colours & scene.colours:
            return other


def _mark(scene: Scene, frames: Iterator[Picture], rng: np.random.Generator, seed: int) -> Iterator[Picture]:
    """A half-transparent logo text in a corner or the centre; one in eight wanders."""
    text, scale = pick(rng, MARKS), float(rng.uniform(0.6, 0.85))
    opacity, wanders = float(rng.uniform(0.55, 0.85)), bool(rng.random() < 0.125)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, 1)
    free = np.array([256 - width - 12, 256 - height - 16])
    corner = np.array(pick(rng, ((0.0, 0.0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)))) * free + (6, height + 6)
    drift = np.array(pick(rng, ((1.0, 1.0), (1, -1), (-1, 1), (-1, -1))))
    for number, frame in enumerate(frames):
        place = corner + (drift * number if wanders else 0)
        x, y = (
            int(place[0] - 6) % (int(free[0]) + 1) + 6,
            int(place[1] - height - 6) % (int(free[1]) + 1) + height + 6,
        )
        yield write_text(frame, text, (x, y), scale, opacity)


def _subtitle(scene: Scene, frames: Iterator[Picture], rng: np.random.Generator, seed: int) -> Iterator[Picture]:
    """White burnt-in text at the bottom, another line every two to three seconds."""
    lines = rng.permutation(list(SUBTITLES)).tolist()
    each = int(rng.integers(16, 25))
    for number, frame in enumerate(frames):
        text = str(lines[number // each % len(lines)])
        scale = min(0.62, 0.62 * 240 / cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, 0.62, 1)[0][0])
        width = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, 1)[0][0]
        yield write_text(frame, text, ((256 - width) // 2, 242), scale, 1.0, cv2.FONT_HERSHEY_DUPLEX, 1)


def write_text(
    frame: Picture,
    text: str,
    place: tuple[int, int],
    scale: float,
    opacity: float,
    font: int = cv2.FONT_HERSHEY_DUPLEX,
    weight: int = 1,
) -> Picture:
    """A copy of the frame [H W 3] with light text on a dark edge at `place` (left end of its base line, pixels)."""
    written = frame.copy()
    for x, y in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        cv2.putText(written, text, (place[0] + x, place[1] + y), font, scale, (25, 25, 25), weight, cv2.LINE_AA)
    cv2.putText(written, text, place, font, scale, (250, 250, 250), weight, cv2.LINE_AA)
    return np.asarray(cv2.addWeighted(written, opacity, frame, 1 - opacity, 0), dtype=np.uint8)


def _still(scene: Scene, frames: Iterator[Picture], rng: np.random.Generator, seed: int) -> Iterator[Picture]:
    """One frozen frame that shows something, as long as the clip."""
    fullest = max(scene.states, key=len)
    picture = draw_state(draw_ground(scene.background, next(frames).shape[0]), fullest)
    for _ in range(len(scene.states) * STATE_FRAMES):
        yield picture


def _join(scene: Scene, frames: Iterator[Picture], rng: np.random.Generator, seed: int) -> Iterator[Picture]:
    """The first half of the clip, then a hard cut to the second half of a scene on a very different ground."""
    light = np.mean(scene.background.light + scene.background.dark)
    other = _stranger(rng, scene, seed)
    while abs(np.mean(other.background.light + other.background.dark) - light) < 50:
        other = _stranger(rng, scene, seed)
    half = len(scene.states) // 2 * STATE_FRAMES
    for number, frame in enumerate(frames):
        if number < half:
            yield frame
    states = other.states[len(other.states) // 2 :][: len(scene.states) - half // STATE_FRAMES]
    yield from draw_frames(dataclasses.replace(other, states=states))


def _worsen(frames: Iterator[Picture], rng: np.random.Generator) -> Iterator[Picture]:
    """The same pictures smaller or larger and a little brighter or darker, as after another upload."""
    size = pick(rng, (192, 224, 288))
    gain, shift = float(rng.uniform(0.94, 1.06)), float(rng.uniform(0, 8))
    for frame in frames:
        resized = cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA)
        yield np.asarray(cv2.convertScaleAbs(resized, alpha=gain, beta=shift), dtype=np.uint8)


def _break(path: Path, frames: Iterator[Picture], rng: np.random.Generator, encode: Encode) -> None:
    """A file that no player reads: cut short, empty, text, or with a garbage head."""
    how = pick(rng, BREAKS)
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html><body><h1>404 Not Found</h1></body></html>\n" * 40, encoding="utf-8")
    else:
        encode(path, frames)
        content = path.read_bytes()
        if how == "truncated":
            path.write_bytes(content[: int(len(content) * rng.uniform(0.2, 0.6))])
        else:
            path.write_bytes(rng.bytes(4096) + content[4096 : len(content) // 2])
