"""Shots: real clips joined into one film, the joins that each detector finds, and the cuts it finds beside them.

Run: python bench/shots.py FOLDER --pictures OUT --json bench/results/shots.json. FOLDER holds real clips (.mp4), read
in place; the first seconds of each are joined. A cut beside the joins is no error where the clip itself has one: the
frames before and after each are drawn to OUT/DETECTOR.png, to be judged by eye.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from fair import write
from numpy.typing import NDArray

from xgenvideo.curate.shots import HEIGHT, WIDTH, ShotModel, find_shots
from xgenvideo.data.video import sample_video

Frames = NDArray[np.uint8]
SECONDS, FPS = 6.0, 25.0
SLACK = 2  # frames that a found cut may lie from a join


def film(paths: list[Path]) -> tuple[Frames, Frames, list[int]]:
    """Frames at 48 x 27 and, for the eye, at 160 x 90; and the numbers of the frames at which a clip begins."""
    small: list[Frames] = []
    seen: list[Frames] = []
    joins: list[int] = []
    for path in paths:
        frames = sample_video(path, FPS, round(SECONDS * FPS), short_side=90).frames
        joins.append(len(small))
        small.extend(scaled(frames, (WIDTH, HEIGHT)))
        seen.extend(scaled(frames, (160, 90)))
    return np.stack(small), np.stack(seen), joins[1:]


def scaled(frames: Frames, size: tuple[int, int]) -> Frames:
    """Frames at another size (width, height)."""
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames]).astype(np.uint8)


def compare(frames: Frames, joins: list[int], model: ShotModel | None) -> tuple[dict[str, Any], list[int]]:
    """Joins found and cuts beside them, and the frames of the latter."""
    start = time.process_time()
    chances = model.chances(frames) if model else None
    shots = find_shots(frames, np.arange(len(frames)) / FPS, len(frames) / FPS, chances)
    spent = time.process_time() - start
    cuts = sorted({round(end * FPS) for _, end in shots[:-1]} | {round(begin * FPS) for begin, _ in shots[1:]})
    found = [join for join in joins if any(abs(cut - join) <= SLACK for cut in cuts)]
    beside = [cut for cut in cuts if all(abs(cut - join) > SLACK for join in joins)]
    figures = {
        "frames": len(frames),
        "joins": len(joins),
        "joins_found": len(found),
        "cuts_beside": len(beside),
        "cpu_ms_a_frame": round(1000 * spent / len(frames), 3),
    }
    return figures, beside


def draw(path: Path, seen: Frames, places: list[int]) -> None:
    """A row of frames around each place: three before, three after."""
    around = [np.clip(np.arange(place - 3, place + 3), 0, len(seen) - 1) for place in places]
    rows = [np.concatenate(list(seen[numbers]), axis=1) for numbers in around]
    if rows:
        cv2.imwrite(str(path), np.concatenate(rows)[..., ::-1])


def main() -> None:
    """Print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    cv2.setNumThreads(1)
    frames, seen, joins = film(sorted(parsed.folder.glob("*.mp4")))
    figures = {}
    for name in ("light", "transnetv2"):
        figures[name], beside = compare(frames, joins, ShotModel() if name == "transnetv2" else None)
        print(name, json.dumps(figures[name]), beside, flush=True)
        if parsed.pictures:
            parsed.pictures.mkdir(parents=True, exist_ok=True)
            draw(parsed.pictures / f"{name}.png", seen, beside)
    if parsed.json:
        write(parsed.json, figures)


if __name__ == "__main__":
    main()
