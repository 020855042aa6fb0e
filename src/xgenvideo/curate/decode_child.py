"""The process that opens strangers' videos: reads jobs (JSON lines) and answers on stdout.

Started by `workers.py` with its memory limit in MB as argument. It imports no models and keeps no state between jobs.
"""

import base64
import json
import math
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from xgenvideo.curate.clips import Clip, write_clip
from xgenvideo.curate.colours import colour_shares
from xgenvideo.curate.duplicates import fingerprint, sketch
from xgenvideo.curate.motion import measure_motion
from xgenvideo.curate.picture import measure_picture, without_bars
from xgenvideo.curate.shots import HEIGHT, WIDTH
from xgenvideo.curate.text_overlay import suspect_text
from xgenvideo.curate.watermark import measure_marks
from xgenvideo.data.confined import UNWRITABLE, confine
from xgenvideo.data.video import Probe, probe_and_sample
from xgenvideo.errors import MediaError
from xgenvideo.records import SampledVideo

SCAN_FPS = 240.0  # over the frame rate of every source


def decode_job(job: dict[str, Any]) -> dict[str, Any]:
    """Decode, measure and store one video. Answers its facts and cheap scores, or a reason code."""
    path = Path(job["path"])
    try:
        sampling = {"fps": job["fps"], "max_frames": job["max_frames"], "short_side": job["short_side"]}
        facts, sampled = _sample(path, job.get("start", 0.0), job.get("end"), **sampling)
    except MediaError as error:
        return {"reason": error.reason, "detail": error.detail[:300]}
    if job.get("crop_bars"):
        sampled = replace(sampled, frames=without_bars(sampled.frames))
    clip = Clip.from_sampled(sampled, job["jpeg_quality"])
    write_clip(Path(job["out"]), clip)
    return {
        "width": facts.width,
        "height": facts.height,
        "seconds": round(sampled.seconds, 4),
        "source_frames": facts.frames,
        "codec": facts.codec,
        "container": facts.container,
        "rotation": facts.rotation,
        "source_fps": round(facts.fps, 3),
        "audio": facts.audio,
        "frames": len(sampled.frames),
        "motion": measure_motion(sampled.frames),
        "picture": measure_picture(sampled.frames),
        "text": suspect_text(sampled.frames),
        "marks": measure_marks(sampled.frames),
        "colours": colour_shares(sampled.frames),
        "sketch": base64.b64encode(sketch(fingerprint(clip.thumbs, clip.pts, sampled.seconds, (0, 0)))).decode(),
    }


def scan_job(job: dict[str, Any]) -> dict[str, Any]:
    """Every frame of one video, 48 x 27 pixels, for the shot detectors. Answers how many, or a reason code."""
    start, end = job["start"], job["end"]
    try:
        # More targets than frames: each frame is taken once.
        count = math.ceil(min(job["max_seconds"], (end or math.inf) - start) * SCAN_FPS)
        _, sampled = probe_and_sample(Path(job["path"]), SCAN_FPS, count, start, HEIGHT)
    except MediaError as error:
        return {"reason": error.reason, "detail": error.detail[:300]}
    small = [cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA) for frame in sampled.frames]
    temporary = Path(job["out"] + ".part.npz")
    np.savez(temporary, frames=np.stack(small), times=sampled.pts - start)
    temporary.replace(job["out"])
    return {
        "frames": len(small),
        "seconds": round(min(sampled.seconds - start, (end or math.inf) - start, job["max_seconds"]), 6),
    }


def _sample(
    path: Path, start: float, end: float | None, fps: float, max_frames: int, short_side: int
) -> tuple[Probe, SampledVideo]:
    """The frames of a clip in its video, their times counted from the clip's start; `end` None: to the file's end."""
    if end is not None:
        max_frames = min(max_frames, max(1, math.ceil((end - start) * fps - 1e-6)))
    facts, sampled = probe_and_sample(path, fps, max_frames, start, short_side)
    seconds = min(sampled.seconds, end if end is not None else math.inf) - start
    if start == 0 and seconds == sampled.seconds:
        return facts, sampled
    # The nearest frame to the start may be shown a little before it.
    return facts, replace(sampled, pts=np.maximum(0.0, sampled.pts - start), seconds=seconds)


def main() -> None:
    """Answer jobs until stdin ends."""
    answers = confine(int(sys.argv[1]))
    for line in sys.stdin.buffer:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        try:
            answer = (scan_job if "max_seconds" in job else decode_job)(job)
        except OSError as error:
            unwritable = error.errno in UNWRITABLE
            detail = f"{type(error).__name__}: {error}"[:300]
            answer = {"unwritable": str(error)} if unwritable else {"reason": "decode_failed", "detail": detail}
        except MemoryError:
            answer = {"reason": "too_large", "detail": "more memory than a decoder may use"}
        except Exception as error:  # a bug met by one file is reported for it, and the run goes on
            answer = {"reason": "decode_failed", "detail": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
