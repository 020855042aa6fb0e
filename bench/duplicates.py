"""Near duplicates: which copies of clips curation finds, and what else it takes for one.

Run: python bench/duplicates.py FOLDER --generated 160 --json bench/results/duplicates.json. FOLDER holds real clips
(.mp4), read in place; `--generated` adds as many clips of the generator, whose twins show the same things in another
order. Every clip is copied in each way, all originals and one kind of copy are searched together, and a copy counts as
found where it is dropped for its own original. Scenes with a thing of another shape or colour are no copies.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from fair import write
from numpy.typing import NDArray

from xgenvideo.curate.clips import Clip
from xgenvideo.curate.duplicates import Fingerprint, Sketches, find_duplicates, fingerprint
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.data.generate import encode_video, generate, make_twins
from xgenvideo.data.generate.render import draw_frames
from xgenvideo.data.generate.story import COLOURS, SHAPES, Scene
from xgenvideo.data.video import sample_video
from xgenvideo.records import SampledVideo

Frames = NDArray[np.uint8]
SPEED = 1.1
LOOKS = {"thumbnails alone": False, "looked at closely": True}


def compressed(frames: Frames, quality: int) -> Frames:
    """The frames after H.264 at a constant quality, sides cut to even numbers."""
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=2, options={"crf": str(quality), "preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
            for frame in even:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            file.mux(stream.encode(None))
        with av.open(str(path)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


@dataclass(frozen=True)
class Copy:
    """A clip as curation stores it, and its fingerprint."""

    clip: Clip
    print: Fingerprint


def stored(frames: Frames, pts: NDArray[np.float64], seconds: float, rank: tuple[int, int]) -> Copy:
    """Frames [F H W 3] at pts [F] seconds, as JPEG and as thumbnails."""
    times = pts[: len(frames)]
    sampled = SampledVideo(np.ascontiguousarray(frames), times, np.arange(len(frames), dtype=np.int64), seconds)
    clip = Clip.from_sampled(sampled, CurateSettings().jpeg_quality)
    return Copy(clip, fingerprint(clip.thumbs, clip.pts, seconds, rank))


def copies(path: Path, settings: CurateSettings) -> dict[str, Copy]:
    """A clip, as `own`, and its copies."""
    sampled = sample_video(path, settings.fps, settings.max_frames, short_side=settings.short_side)
    frames, pts, seconds = sampled.frames, sampled.pts, sampled.seconds
    height, width = frames.shape[1:3]
    top, side = height // 20, width // 20
    third = [cv2.resize(f, (width // 3, height // 3), interpolation=cv2.INTER_AREA) for f in frames]
    fast = sample_video(path, settings.fps / SPEED, settings.max_frames, short_side=settings.short_side)
    made = {
        "re-encoded": compressed(frames, 33),
        "cropped": frames[:, top : height - top, side : width - side],
        "cropped at two sides": frames[:, 2 * top :, : width - 2 * side],
        "resized": compressed(np.stack(third).astype(np.uint8), 28),
    }
    found = {name: stored(changed, pts, seconds, (-100, 1)) for name, changed in made.items()}
    found["speed 1.1"] = stored(fast.frames, fast.pts / SPEED, fast.seconds / SPEED, (-100, 1))
    return found | {"own": stored(frames, pts, seconds, (-256, 0))}


def dropped(clips: list[Copy], closely: bool = True) -> dict[int, int]:
    """For each clip that is dropped, by its place: the one kept."""
    read_clip = (lambda place: clips[place].clip) if closely else None
    sketches = Sketches.of([copy.print for copy in clips])
    found = find_duplicates(sketches, lambda place: clips[place].print, CurateSettings(), read_clip)
    return {place: kept for place, (kept, _) in found.items()}


def measure(paths: list[Path]) -> dict[str, Any]:
    """Recall and precision by kind of copy, over all clips at once."""
    settings = CurateSettings()
    made = [copies(path, settings) for path in paths]
    figures: dict[str, Any] = {"clips": len(paths)}
    for kind in made[0]:
        if kind != "own":
            found = dropped([each["own"] for each in made] + [each[kind] for each in made])
            right = sum(place == kept + len(paths) for place, kept in found.items())
            figures[kind] = {
                "recall": round(right / len(paths), 4),
                "precision": round(right / max(1, len(found)), 4),
                "found": len(found),
            }
    return figures


def altered(scene: Scene, rng: np.random.Generator, what: str) -> Scene:
    """The same paths over the same ground, one thing of another shape or colour."""
    things = sorted({place.thing for state in scene.states for place in state}, key=str)
    old = things[rng.integers(len(things))]
    taken = {getattr(thing, what) for thing in things}
    other = rng.choice([value for value in (SHAPES if what == "shape" else COLOURS) if value not in taken])
    new = replace(old, shape=str(other)) if what == "shape" else replace(old, colour=str(other))
    states = [tuple(replace(p, thing=new) if p.thing == old else p for p in state) for state in scene.states]
    return replace(scene, states=tuple(states))


def look_alikes(count: int, folder: Path) -> dict[str, Any]:
    """Scenes and the same with a thing of another shape or colour: how many are dropped, with thumbnails alone and with
    the close look.
    """
    settings, path = CurateSettings(), folder / "scene.mp4"

    def filmed(scene: Scene, rank: int) -> Copy:
        encode_video(path, draw_frames(scene))
        sampled = sample_video(path, settings.fps, settings.max_frames, short_side=settings.short_side)
        return stored(sampled.frames, sampled.pts, sampled.seconds, (-256, rank))

    scenes = [scene for number in range(-(-count // 2)) for scene in make_twins(31, number)][:count]
    figures: dict[str, Any] = {"scenes": count}
    for what in ("shape", "colour"):
        pairs = [
            [filmed(scene, 0), filmed(altered(scene, np.random.default_rng(number), what), 1)]
            for number, scene in enumerate(scenes)
        ]
        counts = {name: sum(len(dropped(pair, closely)) for pair in pairs) for name, closely in LOOKS.items()}
        figures[f"another {what}"] = counts
    return figures


def main() -> None:
    """Print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--generated", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    cv2.setNumThreads(1)
    figures = {"real": measure(sorted(parsed.folder.glob("*.mp4")))}
    if parsed.generated:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder), clips=parsed.generated, seed=29, defect_share=0.0, processes=1)
            figures["generated"] = measure(sorted(Path(folder).glob("videos/*.mp4")))
            figures["look-alikes"] = look_alikes(parsed.generated, Path(folder))
    print(json.dumps(figures, indent=1))
    if parsed.json:
        write(parsed.json, figures)


if __name__ == "__main__":
    main()
