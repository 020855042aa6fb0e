"""The process that opens strangers' videos: reads jobs (JSON lines) and answers on stdout.

Started by `workers.py` with its memory limit in MB as argument. It imports no models and keeps no state between jobs.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from xgenvideo.curate.clips import Clip, write_clip
from xgenvideo.curate.colours import colour_shares
from xgenvideo.curate.motion import measure_motion
from xgenvideo.curate.text_overlay import suspect_text
from xgenvideo.data.video import probe_and_sample
from xgenvideo.errors import MediaError


def decode_job(job: dict[str, Any]) -> dict[str, Any]:
    """Decode, measure and store one video. Answers its facts and cheap scores, or a reason code."""
    path = Path(job["path"])
    try:
        sampling = {"fps": job["fps"], "max_frames": job["max_frames"], "short_side": job["short_side"]}
        facts, sampled = probe_and_sample(path, **sampling)
    except MediaError as error:
        return {"reason": error.reason, "detail": error.detail[:300]}
    clip = Clip.from_sampled(sampled, job["jpeg_quality"])
    write_clip(Path(job["out"]), clip)
    return {
        "width": facts.width,
        "height": facts.height,
        "seconds": round(facts.seconds, 4),
        "source_frames": facts.frames,
        "codec": facts.codec,
        "container": facts.container,
        "rotation": facts.rotation,
        "source_fps": round(facts.fps, 3),
        "audio": facts.audio,
        "frames": len(sampled.frames),
        "motion": measure_motion(sampled.frames),
        "text": suspect_text(sampled.frames),
        "colours": colour_shares(sampled.frames),
    }


def main() -> None:
    """Answer jobs until stdin ends."""
    limit = int(sys.argv[1]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside C code
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    cv2.setNumThreads(1)
    np.seterr(all="ignore")
    # Answers get a channel of their own: libraries print to stdout.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, job["seconds"])
        try:
            answer = decode_job(job)
        except MemoryError:
            answer = {"reason": "too_large", "detail": "more memory than a decoder may use"}
        except Exception as error:  # a bug met by one file is reported for it, and the run goes on
            answer = {"reason": "decode_failed", "detail": f"{type(error).__name__}: {error}"[:300]}
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
