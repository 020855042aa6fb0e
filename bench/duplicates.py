"""Near duplicates: which copies of clips curation finds, and what else it takes for one.

Run: python bench/duplicates.py FOLDER --generated 160 --json bench/results/duplicates.json. FOLDER holds real clips
(.mp4), read in place; `--generated` adds as many clips of the generator, whose twins show the same things in another
order. Every clip is copied in each way, all originals and one kind of copy are searched together, and a copy counts as
found where it is dropped for its own original.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from fair import write
from numpy.typing import NDArray

from xgenvideo.curate.clips import THUMB
from xgenvideo.curate.duplicates import Fingerprint, Sketches, find_duplicates, fingerprint
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.data.generate import generate
from xgenvideo.data.video import sample_video

Frames = NDArray[np.uint8]
SPEED = 1.1


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


def printed(frames: Frames, pts: NDArray[np.float64], seconds: float, rank: tuple[int, int]) -> Fingerprint:
    """The fingerprint of frames, through the thumbnails that curation stores."""
    thumbs = np.stack([cv2.resize(frame, (THUMB, THUMB), interpolation=cv2.INTER_AREA) for frame in frames])
    return fingerprint(thumbs.astype(np.uint8), pts[: len(thumbs)], seconds, rank)


def copies(path: Path, settings: CurateSettings) -> dict[str, Fingerprint]:
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
    prints = {name: printed(changed, pts, seconds, (-100, 1)) for name, changed in made.items()}
    prints["speed 1.1"] = printed(fast.frames, fast.pts / SPEED, fast.seconds / SPEED, (-100, 1))
    return prints | {"own": printed(frames, pts, seconds, (-256, 0))}


def measure(paths: list[Path]) -> dict[str, Any]:
    """Recall and precision by kind of copy, over all clips at once."""
    settings = CurateSettings()
    prints = {path.stem: copies(path, settings) for path in paths}
    figures: dict[str, Any] = {"clips": len(paths)}
    for kind in next(iter(prints.values())):
        if kind != "own":
            searched = {f"own {name}": made["own"] for name, made in prints.items()}
            searched |= {f"copy {name}": made[kind] for name, made in prints.items()}
            names, clips = list(searched), list(searched.values())
            found = find_duplicates(Sketches.of(clips), clips.__getitem__, settings)
            pairs = [(names[place], names[kept]) for place, (kept, _) in found.items()]
            right = sum(name[:5] == "copy " and kept == f"own {name[5:]}" for name, kept in pairs)
            figures[kind] = {
                "recall": round(right / len(paths), 4),
                "precision": round(right / max(1, len(found)), 4),
                "found": len(found),
            }
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
    print(json.dumps(figures, indent=1))
    if parsed.json:
        write(parsed.json, figures)


if __name__ == "__main__":
    main()
