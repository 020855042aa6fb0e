"""The plain way, of bench/curation.py: PYTHON plain_side.py LISTING OUT PROCESSES.

Decodes each video with PyAV, takes 2 frames a second with a short side of 256, stores them as JPEG in a tar beside the
caption: what video2dataset's frame extraction leaves, without its downloads. No judge, no limits on a bad file, no
record of where a sample is from.
"""

import io
import json
import multiprocessing
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

FPS, SHORT_SIDE, QUALITY, MOST = 2, 256, 90, 64


def frames_of(path: str) -> Iterator[bytes]:
    """JPEG frames, 2 a second."""
    due, taken = 0.0, 0
    with av.open(path) as file:
        for frame in file.decode(video=0):
            if frame.time is None or frame.time < due:
                continue
            due, taken = due + 1 / FPS, taken + 1
            scale = SHORT_SIDE / min(frame.width, frame.height)
            width, height = (round(side * min(1.0, scale)) for side in (frame.width, frame.height))
            picture = frame.reformat(width, height, "bgr24").to_ndarray()
            yield cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
            if taken == MOST:
                return


def sample_of(row: dict[str, str]) -> tuple[str, str, list[bytes]]:
    """Key, caption and frames of a line of the listing."""
    return Path(row["video"]).stem, row["caption"], list(frames_of(row["video"]))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """One member."""
    about = tarfile.TarInfo(name)
    about.size = len(content)
    tar.addfile(about, io.BytesIO(content))


def main() -> None:
    """Decode, store."""
    listing, out, processes = sys.argv[1:]
    rows = list(map(json.loads, Path(listing).read_text(encoding="utf-8").splitlines()))
    cv2.setNumThreads(1)
    with multiprocessing.get_context("fork").Pool(int(processes)) as pool, tarfile.open(f"{out}/00000.tar", "w") as tar:
        for key, caption, jpegs in pool.imap(sample_of, rows):
            add(tar, f"{key}.txt", caption.encode())
            for number, jpeg in enumerate(jpegs):
                add(tar, f"{key}.{number:03d}.jpg", jpeg)


if __name__ == "__main__":
    main()
