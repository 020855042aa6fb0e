"""Scenes as pictures: `render(scene)` gives all frames, 8 a second, `key_frames(scene)` the key states alone."""

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.data.generate.story import COLOURS, Background, Placed, Scene, State

FPS = 8
STATE_FRAMES = 4  # frames of a key state, which lasts half a second
SIZE = 256
_SHIFT = 4  # cv2 draws at 1/16 of a pixel


def render(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """All frames of a scene, uint8 RGB [N H W 3] at 8 frames a second; frame 4 i is key state i."""
    return np.stack(list(draw_frames(scene, size)))


def key_frames(scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The key states of a scene, uint8 RGB [K H W 3]: what sampling at 2 frames a second takes."""
    ground = draw_ground(scene.background, size)
    return np.stack([draw_state(ground, state) for state in scene.states])


def draw_frames(scene: Scene, size: int = SIZE) -> Iterator[NDArray[np.uint8]]:
    """Frames one by one, uint8 RGB [H W 3]. A state seen again is not drawn again."""
    ground = draw_ground(scene.background, size)
    drawn: dict[State, NDArray[np.uint8]] = {}
    following = (*scene.states[1:], scene.states[-1])
    for state, after in zip(scene.states, following, strict=True):
        for step in range(STATE_FRAMES):
            between = blend(state, after, step / STATE_FRAMES)
            if between not in drawn:
                drawn[between] = draw_state(ground, between)
            yield drawn[between]


def blend(state: State, after: State, u: float) -> State:
    """The state at the fraction u from `state` to `after`: things in both glide, others are there or not."""
    if u == 0 or state == after:
        return state
    if {placed.thing for placed in state} != {placed.thing for placed in after}:
        return state if u <= 0.5 else after
    goals = {placed.thing: placed for placed in after}
    return tuple(Placed(p.thing, p.x + u * (goals[p.thing].x - p.x), p.y + u * (goals[p.thing].y - p.y)) for p in state)


def draw_ground(background: Background, size: int) -> NDArray[np.uint8]:
    """The background, uint8 RGB [H W 3]: a gradient with a faint smooth texture."""
    axis = np.linspace(-0.5, 0.5, size, dtype=np.float32)
    slope = np.cos(background.angle) * axis[None, :] + np.sin(background.angle) * axis[:, None]
    noise = np.random.default_rng(background.seed).normal(0, 4, (9, 9)).astype(np.float32)
    texture = cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
    light, dark = np.array(background.light, np.float32), np.array(background.dark, np.float32)
    blended = dark + (slope[..., None] / np.sqrt(2) + 0.5) * (light - dark) + texture[..., None]
    return np.asarray(np.clip(np.rint(blended), 0, 255), dtype=np.uint8)


def draw_state(ground: NDArray[np.uint8], state: State) -> NDArray[np.uint8]:
    """The ground [H W 3] with every thing of the state on it."""
    picture = ground.copy()
    for placed in state:
        _draw_thing(picture, placed)
    return picture


def _draw_thing(picture: NDArray[np.uint8], placed: Placed) -> None:
    """Draw one thing, filled, with a thin darker edge."""
    size = picture.shape[0]
    colour = COLOURS[placed.thing.colour]
    edge = tuple(int(0.55 * channel) for channel in colour)
    radius = placed.thing.size / 2
    centre = np.array([placed.x, placed.y])
    scale = size * 2**_SHIFT
    width = max(1, size // 128)
    if placed.thing.shape in ("circle", "ring"):
        middle = tuple(np.rint(centre * scale).astype(int).tolist())
        if placed.thing.shape == "circle":
            cv2.circle(picture, middle, round(radius * scale), colour, -1, cv2.LINE_AA, _SHIFT)
            cv2.circle(picture, middle, round(radius * scale), edge, width, cv2.LINE_AA, _SHIFT)
        else:
            band = 0.42 * radius
            thick = round(band * size)
            cv2.circle(picture, middle, round((radius - band / 2) * scale), colour, thick, cv2.LINE_AA, _SHIFT)
            for rim in (radius, radius - band):
                cv2.circle(picture, middle, round(rim * scale), edge, width, cv2.LINE_AA, _SHIFT)
        return
    points = np.rint((centre + radius * outline(placed.thing.shape)) * scale).astype(np.int32)
    cv2.fillPoly(picture, [points], colour, cv2.LINE_AA, _SHIFT)
    cv2.polylines(picture, [points], True, edge, width, cv2.LINE_AA, _SHIFT)


def outline(shape: str) -> NDArray[np.float64]:
    """Corners [N 2] of a shape of radius 1, y downwards."""
    if shape == "square":
        return 0.86 * np.array([(-1.0, -1.0), (1, -1), (1, 1), (-1, 1)])
    if shape == "triangle":
        return np.array([(0.0, -1.0), (1, 0.8), (-1, 0.8)])
    raise AssertionError(f"no outline for the shape {shape!r}")
