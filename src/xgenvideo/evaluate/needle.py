"""A needle in a haystack: one generated clip hidden in a long video of others, at every length and position.

Pictures are drawn and sampled at the release's rate as a decoded video would be; no file is written between.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xgenvideo.data.frames import fit_square
from xgenvideo.data.generate import Scene, key_frames, make_twins
from xgenvideo.errors import ConfigError
from xgenvideo.infer.moments import Moments, moment_for_question, rank_by_caption, read_moments
from xgenvideo.infer.release import Release
from xgenvideo.records import Question

LENGTHS_SECONDS = (32, 120, 300, 600, 1800, 3600)
POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
DRAWN_FPS = 2.0
CELL, EDGE = 64, 72


@dataclass(frozen=True)
class Cell:
    """What was found of `needles` clips hidden at `position` (share of the length) of videos of `seconds`.

    `found`: the best of `moments` moments for the clip's caption has its middle inside the clip; `found_by_things`: the
    same for the names of what it shows, in the order of the alphabet, which give no answer away. Of `questions` about
    the clips: `answered` from the moment found by things, `answered_by_question` from the one that fits the question
    itself best, `answered_at_once` from the latents of all windows together; right is the likeliest option, and luck
    gives `lucky`.
    """

    seconds: int
    position: float
    needles: int
    moments: int
    found: int
    found_by_things: int
    questions: int
    answered: int
    answered_by_question: int
    answered_at_once: int
    lucky: float


@dataclass(frozen=True, repr=False)
class Needle:
    """A clip to hide, and the encoded frames [N P Wv] of it and of clips that share no thing with it."""

    scene: Scene
    features: Tensor
    hay: Tensor

    def __repr__(self) -> str:
        return f"Needle({self.scene.caption!r}, features={list(self.features.shape)}, hay={list(self.hay.shape)})"


def needle_grid(
    release: Release,
    lengths_seconds: Sequence[int] = LENGTHS_SECONDS,
    positions: Sequence[float] = POSITIONS,
    needles: int = 4,
    seed: int = 7_000_000,
) -> list[Cell]:
    """A cell for each length and position, lengths first. Raises ConfigError for a needle longer than the haystack.

    The same clips and haystacks serve every cell, so cells differ by length and position alone. No clip of a haystack
    shows a thing that the needle shows: a question about the red circle has one true answer.
    """
    if release.config.data.fps != DRAWN_FPS:
        raise ConfigError(
            "data.fps", release.config.data.fps, f"must be {DRAWN_FPS:g}, the rate of generated key frames"
        )
    scenes = [make_twins(seed, number)[0] for number in range(needles)]
    longest = max(len(scene.states) for scene in scenes)
    if any(2 * seconds < longest for seconds in lengths_seconds):
        raise ConfigError("lengths_seconds", tuple(lengths_seconds), f"must each be at least {longest / 2:g} s")
    hidden = [_needle(release, scene, seed + 1, 2 * max(lengths_seconds)) for scene in scenes]
    return [_cell(release, hidden, seconds, share) for seconds in lengths_seconds for share in positions]


def _needle(release: Release, scene: Scene, seed: int, hay_frames: int) -> Needle:
    """The scene with a haystack of `hay_frames` frames."""
    parts: list[Tensor] = []
    drawn = 0
    while sum(map(len, parts)) < hay_frames:
        other = make_twins(seed, drawn)[0]
        drawn += 1
        if not _things(other) & _things(scene):
            parts.append(_encode(release, other))
    return Needle(scene, _encode(release, scene), torch.cat(parts)[:hay_frames])


def _things(scene: Scene) -> set[str]:
    return {placed.thing.name for state in scene.states for placed in state}


def _named(scene: Scene) -> str:
    """What is to be seen, in a text like a caption: "A blue ring and a red circle."."""
    names = sorted({placed.thing.a_name for state in scene.states for placed in state})
    return f"{' and '.join(names).capitalize()}."


@torch.inference_mode()
def _encode(release: Release, scene: Scene) -> Tensor:
    """Features [N P Wv] of a scene's key frames."""
    size = release.config.model.vision.image_size
    squares = np.stack([fit_square(picture, size) for picture in key_frames(scene)])
    frames = torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2)))
    features: Tensor = release.model.encode_frames(frames.to(release.model.logit_scale.device))
    return features


def _cell(release: Release, hidden: Sequence[Needle], seconds: int, position: float) -> Cell:
    found = by_things = read = 0
    answered = by_question = at_once = 0
    questions = [question for needle in hidden for question in needle.scene.questions]
    for needle in hidden:
        features = needle.hay[: 2 * seconds].clone()
        start = round(position * (2 * seconds - len(needle.features)))
        end = start + len(needle.features)
        features[start:end] = needle.features
        seen = read_moments(release, _windows(release, features))
        best = [rank_by_caption(release, seen, text)[0] for text in (needle.scene.caption, _named(needle.scene))]
        read = len(seen.spans)
        inside = [start <= DRAWN_FPS * sum(seen.spans[number]) / 2 <= end for number in best]
        found, by_things = found + inside[0], by_things + inside[1]
        together = _at_once(release, features)
        for question in needle.scene.questions:
            right = _right(release, question, seen, best[1], together)
            answered, by_question, at_once = answered + right[0], by_question + right[1], at_once + right[2]
    lucky = sum(1 / len(question.options) for question in questions)
    asked = len(questions)
    return Cell(seconds, position, len(hidden), read, found, by_things, asked, answered, by_question, at_once, lucky)


def _right(release: Release, question: Question, seen: Moments, best: int, together: Tensor) -> list[bool]:
    """Whether the question is answered from the moment found, from the one that fits it best, and from everything."""
    own = moment_for_question(release, seen, question.text, question.options)
    read = (seen.latents[best][None], seen.latents[own][None], together)
    scores = [release.score_options(latents, question.text, question.options) for latents in read]
    return [int(np.argmax(values)) == question.answer for values in scores]


def _windows(release: Release, features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Features [F P Wv] and pts [F] seconds of each window of a whole video's features [N P Wv]."""
    length = release.config.data.frames
    for at in range(0, len(features), length):
        part = features[at : at + length]
        yield part, (at + torch.arange(len(part))).float() / DRAWN_FPS


@torch.inference_mode()
def _at_once(release: Release, features: Tensor) -> Tensor:
    """Latents [1 W*Q Dr] of all windows, as the decoder reads a long video when nobody says where to look."""
    latents = []
    for part, pts in _windows(release, features):
        seconds = pts.to(part.device)[None]
        latents.append(release.model.latents(part[None], seconds, torch.ones_like(seconds, dtype=torch.bool)))
    return torch.cat(latents, dim=1)


def heat_map(cells: Sequence[Cell]) -> str:
    """SVG: a row a length, a column a position, for finding and for answers; each cell says what it counts."""
    lengths, positions = (sorted({getattr(cell, name) for cell in cells}) for name in ("seconds", "position"))
    panel = EDGE + CELL * len(positions)
    height = EDGE + CELL * len(lengths)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * panel + 24} {height}" font-family="sans-serif">'
    ]
    titles = ("clip found by its caption", "questions answered, told what to look for")
    for number, title in enumerate(titles):
        left = number * (panel + 24)
        parts.append(f'<text x="{left + EDGE}" y="20" font-size="14">{title}</text>')
        parts += [_label(left + EDGE + CELL * (i + 0.5), 56, f"{share:.0%}") for i, share in enumerate(positions)]
        parts += [_label(left + 36, EDGE + CELL * (i + 0.5) + 5, f"{one} s") for i, one in enumerate(lengths)]
        for cell in cells:
            found, of = (cell.found, cell.needles) if number == 0 else (cell.answered, cell.questions)
            x, y = left + EDGE + CELL * positions.index(cell.position), EDGE + CELL * lengths.index(cell.seconds)
            parts.append(_square(x, y, found, of))
    return "\n".join([*parts, "</svg>", ""])


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="12" text-anchor="middle">{text}</text>'


def _square(x: float, y: float, found: int, of: int) -> str:
    """From red, none found, to green, all found."""
    colour = f"hsl({120 * found / max(1, of):.0f} 60% 70%)"
    box = f'<rect x="{x:g}" y="{y:g}" width="{CELL - 2}" height="{CELL - 2}" fill="{colour}"/>'
    return box + _label(x + CELL / 2, y + CELL / 2 + 5, f"{found}/{of}")


def report(cells: Sequence[Cell]) -> dict[str, Any]:
    """The grid as JSON values, and over all cells the shares found and answered, against what luck gives."""
    needles, questions = sum(cell.needles for cell in cells), sum(cell.questions for cell in cells)
    shares = {
        name: sum(getattr(cell, name) for cell in cells) / max(1, needles) for name in ("found", "found_by_things")
    }
    for name in ("answered", "answered_by_question", "answered_at_once", "lucky"):
        shares[name] = sum(getattr(cell, name) for cell in cells) / max(1, questions)
    return {"cells": [vars(cell) for cell in cells], **shares}
