"""Overlays burnt into clips: what curation finds of them, and what it drops of the clips as they are.

Run: python bench/overlays.py FOLDER --generated 60 --json bench/results/overlays.json. FOLDER holds the published
Panda-70M samples (.mp4), read in place; `--generated` adds as many clips of the generator. Overlays are drawn into the
sampled frames, which are then compressed as H.264 and decoded again, as an overlay in a published video was. 37 of the
88 samples carry a mark, a subtitle or a game's display of their own, by eye (MARKED): these are counted apart, and
overlays are drawn into the others.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from fair import write
from numpy.typing import NDArray

from xgenvideo.curate.clips import Clip
from xgenvideo.curate.motion import judge_motion, measure_motion
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.text_overlay import TextReader, judge_text, suspect_text
from xgenvideo.curate.watermark import measure_marks
from xgenvideo.data.generate import generate
from xgenvideo.data.video import sample_video
from xgenvideo.records import SampledVideo

Frames = NDArray[np.uint8]
LINES = ("and then we went on to the river", "nobody had told me about that", "so here is what I would do now")
# Samples with a publisher's mark, burnt-in text or a display over the picture, told by eye on contact sheets.
_MARKED = """
    1NMpoAqzJfY.25 2jKXlH_ceCo.11 489O6JiJ8Qk.14 7nxhg1S6BV4.22 An1biDTot5Q.16 BIjo0hm1fdM.47 COLGm4vIVuQ.9
    FK4r5nL45Ds.6 F_7OgSGfbOk.4 GH7Jlmx3riU.98 H2y15JUfSIQ.0 J_3uOQe0Www.5 JlHyAD6Ne_8.53 MIytG6bc4bk.44 MJao9o7ROs0.1
    MxTEUtUle1k.54 RfZklHmewy8.3 Sijr3wlU_9k.2 TPVvXvf4xRc.9 UaQKCrszICw.16 YemkZ7DLOBU.15 ZQiXQ1oKfuk.14
    aHvi80-PnZ8.15 aIFfzBnvUVE.80 aIPu1xGNbhc.49 aQApNfoJ4ls.12 alQRJjsBYDA.10 czAykeFF83k.158 eibWo9t6pos.25
    gWR0Kl5ktLs.6 h4RJ0Kv8n_Y.75 lvPG7CQTRGA.13 lxoDR1ud464.8 mYvSJp7_aYQ.53 nfgMVXJskqM.1 uQs-YDb5VA.9 vdGG2_5VM9U.2
    """
MARKED = frozenset(_MARKED.split())


def _write(frame: Frames, text: str, place: tuple[float, float], share: float, strength: float = 1.0) -> None:
    """White letters with a dark edge, `share` of the frame's height high, their left foot at `place` (fractions)."""
    height, width = frame.shape[:2]
    scale = share * height / 22
    at = round(place[0] * width), round(place[1] * height)
    drawn = frame.copy()
    cv2.putText(drawn, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (20, 20, 20), 3, cv2.LINE_AA)
    cv2.putText(drawn, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, (250, 250, 250), 1, cv2.LINE_AA)
    frame[:] = cv2.addWeighted(drawn, strength, frame, 1 - strength, 0)


def corner_text(frames: Frames) -> None:
    """A name in the lower right corner."""
    for frame in frames:
        _write(frame, "CLIPHOUSE", (0.66, 0.95), 0.05)


def transparent(frames: Frames) -> None:
    """The same name across the middle, at 45 %."""
    for frame in frames:
        _write(frame, "CLIPHOUSE", (0.3, 0.55), 0.09, strength=0.45)


def moving(frames: Frames) -> None:
    """A name that wanders from frame to frame."""
    for number, frame in enumerate(frames):
        _write(frame, "CLIPHOUSE", (0.05 + 0.07 * (number % 8), 0.15 + 0.11 * (number % 7)), 0.06)


def subtitle(frames: Frames) -> None:
    """A centred line that changes every 1.5 s."""
    for number, frame in enumerate(frames):
        text = LINES[number // 3 % len(LINES)]
        _write(frame, text, (0.5 - 0.011 * len(text), 0.93), 0.05)


def logo(frames: Frames) -> None:
    """A ring with a bar in the upper right corner: no letters."""
    height, width = frames.shape[1:3]
    centre, radius = (round(0.92 * width), round(0.12 * height)), round(0.06 * height)
    for frame in frames:
        cv2.circle(frame, centre, radius, (245, 245, 245), 3, cv2.LINE_AA)
        cv2.line(frame, (centre[0] - radius, centre[1]), (centre[0] + radius, centre[1]), (230, 60, 40), 4)


def ghost(frames: Frames) -> None:
    """A filled triangle with a hole in the lower left corner, at 40 %: no letters."""
    height, width = frames.shape[1:3]
    left, top, side = round(0.04 * width), round(0.8 * height), round(0.14 * height)
    for frame in frames:
        drawn = frame.copy()
        corners = np.array([(left, top + side), (left + side, top + side), (left + side // 2, top)], np.int32)
        cv2.fillPoly(drawn, [corners], (255, 255, 255), cv2.LINE_AA)
        cv2.circle(drawn, (left + side // 2, top + round(0.64 * side)), side // 6, (0, 0, 0), -1, cv2.LINE_AA)
        frame[:] = cv2.addWeighted(drawn, 0.4, frame, 0.6, 0)


OVERLAYS: dict[str, Callable[[Frames], None]] = {
    "corner_text": corner_text, "transparent": transparent, "moving": moving, "subtitle": subtitle, "logo": logo,
    "ghost": ghost,
}  # fmt: skip


def compressed(frames: Frames) -> Frames:
    """The frames after H.264 at constant quality 23, sides cut to even numbers."""
    even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=2, options={"crf": "23", "preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = even.shape[1], even.shape[2], "yuv420p"
            for frame in even:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            file.mux(stream.encode(None))
        with av.open(str(path)) as file:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


class Judge:
    """Curation's own steps for overlays, on frames instead of files."""

    def __init__(self) -> None:
        self.settings = CurateSettings()
        self._reader = TextReader(self.settings)

    def drops(self, frames: Frames) -> bool:
        """Whether these frames are dropped for an overlay."""
        found: list[list[dict[str, Any]]] = []
        if suspect_text(frames)["strokes"] >= self.settings.min_strokes:
            times = np.arange(len(frames)) / self.settings.fps
            clip = Clip.from_sampled(SampledVideo(frames, times, np.arange(len(frames)), len(frames) / 2), 90)
            found = [self._reader.read(frame) for frame in clip.frames(self.settings.ocr_frames)]
        return judge_text(found, self.settings, measure_marks(frames)).reason is not None


def measure(paths: list[Path], judge: Judge) -> dict[str, Any]:
    """Clips as they are and with each overlay; recall by overlay, false alarms, precision (as many clips as hits)."""
    found, seen = dict.fromkeys(OVERLAYS, 0), Counter[str]()
    alarms: list[str] = []
    marked_found: list[str] = []
    for path in paths:
        settings = judge.settings
        frames = sample_video(path, settings.fps, settings.max_frames, short_side=settings.short_side).frames
        if len(frames) < settings.min_frames or judge_motion(measure_motion(frames), settings).reason == "still":
            continue  # never reaches the step
        kind = "marked" if path.stem in MARKED else "clean"
        seen[kind] += 1
        if judge.drops(compressed(frames)):
            (marked_found if kind == "marked" else alarms).append(path.stem)
        for name, burn in OVERLAYS.items() if kind == "clean" else ():
            burnt = frames.copy()
            burn(burnt)
            found[name] += judge.drops(compressed(burnt))
    clean = max(1, seen["clean"])
    return {
        "clean_clips": seen["clean"],
        "recall": {name: round(count / clean, 4) for name, count in found.items()},
        "precision": {name: round(count / max(1, count + len(alarms)), 4) for name, count in found.items()},
        "false_alarms": alarms,
        "own_marks": seen["marked"],
        "own_marks_found": len(marked_found),
    }


def main() -> None:
    """Print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=88)
    parser.add_argument("--generated", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args()
    cv2.setNumThreads(1)
    judge = Judge()
    figures = {"real": measure(sorted(parsed.folder.glob("*.mp4"))[: parsed.clips], judge)}
    if parsed.generated:
        with tempfile.TemporaryDirectory() as folder:
            generate(Path(folder), clips=parsed.generated, seed=23, defect_share=0.0, processes=1)
            figures["generated"] = measure(sorted(Path(folder).glob("videos/*.mp4")), judge)
    print(json.dumps(figures, indent=1))
    if parsed.json:
        write(parsed.json, figures)


if __name__ == "__main__":
    main()
