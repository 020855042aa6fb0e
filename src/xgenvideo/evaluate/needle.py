"""A needle in a haystack: one generated clip hidden in a long video of others, at every length and position.

Pictures are drawn and sampled at the release's rate as a decoded video would be; no file is written between.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.data.frames import fit_square
from xgenvideo.data.generate import Scene, key_frames, make_twins
from xgenvideo.errors import ConfigError
from xgenvideo.infer.release import Release, Window
from xgenvideo.infer.search import embed_text

LENGTHS_SECONDS = (32, 120, 300, 600)
POSITIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
DRAWN_FPS = 2.0
CELL, EDGE = 64, 72


@dataclass(frozen=True)
class Cell:
    """What was found of `needles` clips hidden at `position` (share of the length) of videos of `seconds`.

    `searched`: so many clips' captions had the highest cosine with a window that shows the clip, out of `windows`.
    `answered`: so many of `questions` about them were right by option likelihood, where luck gives `lucky`.
    """

    seconds: int
    position: float
    needles: int
    windows: int
    searched: int
    questions: int
    answered: int
    lucky: float


def needle_grid(
    release: Release,
    lengths_seconds: Sequence[int] = LENGTHS_SECONDS,
    positions: Sequence[float] = POSITIONS,
    needles: int = 4,
    seed: int = 7_000_000,
) -> list[Cell]:
    """A cell for each length and position, lengths first. Raises ConfigError for a needle longer than the haystack.

    The same clips and the same haystack serve every cell, so cells differ by length and position alone.
    """
    if release.config.data.fps != DRAWN_FPS:
        raise ConfigError(
            "data.fps", release.config.data.fps, f"must be {DRAWN_FPS:g}, the rate of generated key frames"
        )
    hidden = [make_twins(seed, number)[0] for number in range(needles)]
    longest = max(len(scene.states) for scene in hidden)
    if any(2 * seconds < longest for seconds in lengths_seconds):
        raise ConfigError("lengths_seconds", tuple(lengths_seconds), f"must each be at least {longest / 2:g} s")
    hay = _hay(release, seed + 1, 2 * max(lengths_seconds))
    return [_cell(release, hidden, hay, seconds, share) for seconds in lengths_seconds for share in positions]


def _cell(release: Release, hidden: list[Scene], hay: NDArray[np.uint8], seconds: int, position: float) -> Cell:
    searched = answered = questions = windows = 0
    lucky = 0.0
    for scene in hidden:
        needle = _squares(release, key_frames(scene))
        start = round(position * (2 * seconds - len(needle)))
        frames = hay[: 2 * seconds].copy()
        frames[start : start + len(needle)] = needle
        latents, vectors = _watch(release, frames)
        windows = len(vectors)
        best = int((vectors @ torch.from_numpy(embed_text(release, scene.caption))).argmax())
        first, last = best * release.config.data.frames, (best + 1) * release.config.data.frames
        searched += first < start + len(needle) and last > start
        for question in scene.questions:
            scores = release.score_options(latents, question.text, question.options)
            answered += int(np.argmax(scores)) == question.answer
            questions, lucky = questions + 1, lucky + 1 / len(question.options)
    return Cell(seconds, position, len(hidden), windows, searched, questions, answered, lucky)


@torch.inference_mode()
def _watch(release: Release, frames: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Frames [N S S 3] at 2 FPS -> latents [1 W*Q Dr] and a unit vector for each window [W E]."""
    latents, vectors = [], []
    for window in _windows(frames, release.config.data.frames):
        latents.append(release.window_latents(window))
        alone = release.window_latents(window, from_start=False)
        vectors.append(release.model.video_embedding(alone)[0].float().cpu())
    return torch.cat(latents, dim=1), torch.stack(vectors)


def _windows(frames: NDArray[np.uint8], length: int) -> Iterator[Window]:
    for at in range(0, len(frames), length):
        part = torch.from_numpy(np.ascontiguousarray(frames[at : at + length].transpose(0, 3, 1, 2)))
        yield Window(at / DRAWN_FPS, part, (at + torch.arange(len(part))).float() / DRAWN_FPS)


def _hay(release: Release, seed: int, count: int) -> NDArray[np.uint8]:
    """`count` frames [N S S 3] of other clips, one after the other."""
    parts: list[NDArray[np.uint8]] = []
    while sum(map(len, parts)) < count:
        parts.append(_squares(release, key_frames(make_twins(seed, len(parts))[0])))
    return np.concatenate(parts)[:count]


def _squares(release: Release, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([fit_square(picture, release.config.model.vision.image_size) for picture in pictures])


def heat_map(cells: Sequence[Cell]) -> str:
    """SVG: a row a length, a column a position, for search and for answers; each cell says what it counts."""
    lengths, positions = (sorted({getattr(cell, name) for cell in cells}) for name in ("seconds", "position"))
    panel = EDGE + CELL * len(positions)
    height = EDGE + CELL * len(lengths)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * panel + 24} {height}" font-family="sans-serif">'
    ]
    titles = ("clip found by its caption", "questions answered")
    for number, title in enumerate(titles):
        left = number * (panel + 24)
        parts.append(f'<text x="{left + EDGE}" y="20" font-size="14">{title}</text>')
        parts += [_label(left + EDGE + CELL * (i + 0.5), 56, f"{share:.0%}") for i, share in enumerate(positions)]
        parts += [_label(left + 36, EDGE + CELL * (i + 0.5) + 5, f"{one} s") for i, one in enumerate(lengths)]
        for cell in cells:
            found, of = (cell.searched, cell.needles) if number == 0 else (cell.answered, cell.questions)
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
    """The grid as JSON values, and over all cells what was found against what luck gives."""
    needles, questions = sum(cell.needles for cell in cells), sum(cell.questions for cell in cells)
    return {
        "cells": [vars(cell) for cell in cells],
        "searched": sum(cell.searched for cell in cells) / max(1, needles),
        "answered": sum(cell.answered for cell in cells) / max(1, questions),
        "answered_by_luck": sum(cell.lucky for cell in cells) / max(1, questions),
    }
