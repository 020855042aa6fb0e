"""Writes generated clips as a raw input folder: videos/*.mp4, pairs.jsonl, defects.jsonl. Run: `xgv curate generate`.

The same seed gives the same files, byte for byte, however many processes draw them.
"""

import dataclasses
import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from xgenvideo.data.generate import defects
from xgenvideo.data.generate.defects import Plant
from xgenvideo.data.generate.render import FPS, STATE_FRAMES, draw_frames
from xgenvideo.data.generate.scenes import make_twins
from xgenvideo.errors import ConfigError, DataError
from xgenvideo.records import Pair

LICENCE = "CC0-1.0 (generated)"
VERSION = 1
QUALITY = 24  # H.264 quantiser: the JPEG-like middle ground of size and fidelity


@dataclass(frozen=True)
class GeneratedSummary:
    """What `generate` wrote. `defects`: clips by planted defect; `seconds`: length of all planned clips."""

    folder: Path
    clips: int
    scenes: int
    heldout: int
    seconds: float
    defects: dict[str, int]


@dataclass(frozen=True)
class Job:
    """One scene to draw in one worker: its twins' keys, and the defects and copies of them."""

    folder: Path
    seed: int
    index: int
    plants: tuple[Plant, ...]


def generate(
    folder: Path, clips: int, seed: int = 0, defect_share: float = 0.15, processes: int = 0
) -> GeneratedSummary:
    """Write `clips` clips (twins and copies counted) with captions and questions into `folder`.

    `defect_share` of the clips for training carry one planted defect; held-out clips carry none. `processes`: 0 is one
    for each core. A folder that is half written is finished, one that is complete is left as it is; `pairs.jsonl` is
    written last. Raises ConfigError for an impossible number, DataError for a folder that holds something else.
    """
    _check_request(clips, defect_share, processes)
    request = {"version": VERSION, "clips": clips, "seed": seed, "defect_share": defect_share}
    plan = defects.plan(clips, seed, defect_share)
    plants: dict[int, list[Plant]] = {}
    for plant in plan.plants:
        plants.setdefault(plant.scene, []).append(plant)
    jobs = [Job(folder, seed, index, tuple(plants.get(index, ()))) for index in range(plan.scenes)]
    pairs = [pair for job in jobs for pair in describe(job)]
    if not _complete(folder, request):
        _draw(jobs, processes)
        truth = [{"key": plant.key, "defects": [plant.defect]} for plant in plan.plants]
        publish_lines(folder / "defects.jsonl", truth)
        publish_lines(folder / "pairs.jsonl", [pair_line(pair) for pair in pairs])
    return GeneratedSummary(
        folder=folder,
        clips=len(pairs),
        scenes=plan.scenes,
        heldout=sum(pair.split == "heldout" for pair in pairs),
        seconds=sum(make_twins(seed, int(pair.source.rsplit("-", 1)[1]))[0].seconds for pair in pairs),
        defects=dict(sorted(Counter(plant.defect for plant in plan.plants).items())),
    )


def _check_request(clips: int, defect_share: float, processes: int) -> None:
    if clips < 2:
        raise ConfigError("clips", clips, "must be at least 2, a scene and its twin")
    if not 0 <= defect_share <= 0.5:
        raise ConfigError("defect_share", defect_share, "must be between 0 and 0.5")
    if defect_share == 0 and clips % 2:
        raise ConfigError("clips", clips, "must be even, as every clip has a twin", (clips - 1, clips + 1))
    if processes < 0:
        raise ConfigError("processes", processes, "must be 0 (one for each core) or more")


def _complete(folder: Path, request: dict[str, Any]) -> bool:
    """Whether the folder already holds all of this request; a new or half-written folder is claimed for it."""
    claim = folder / "generate.json"
    if claim.exists():
        found = json.loads(claim.read_text(encoding="utf-8"))
        if found != request:
            raise DataError(f"{folder} holds clips of {found}, not of {request}: choose another folder or delete it")
    elif folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} is not empty and was not made by this generator: choose another folder")
    else:
        (folder / "videos").mkdir(parents=True, exist_ok=True)
        _write_whole(claim, (json.dumps(request) + "\n").encode())
    return (folder / "pairs.jsonl").exists()


def _draw(jobs: list[Job], processes: int) -> None:
    """Draw all scenes, in this process or in several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(processes or cores, len(jobs))
    if count == 1:
        for job in jobs:
            draw_job(job)
        return
    # spawn: a fork of a process that has started torch's or OpenCV's threads can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        for _ in pool.map(draw_job, jobs, chunksize=4):
            pass


def describe(job: Job) -> list[Pair]:
    """The pairs of one scene: its twins, then the copies of them that a defect adds."""
    twins = make_twins(job.seed, job.index)
    source = f"gen-{job.index:06d}"
    keys = (f"{source}-a", f"{source}-b")
    split = "heldout" if defects.is_heldout(job.index) else "train"
    pairs = []
    for key, other, scene in zip(keys, keys[::-1], twins, strict=True):
        pair = Pair(key, f"videos/{key}.mp4", scene.caption, source, scene.questions, other, LICENCE, split)
        plant = next((p for p in job.plants if p.key == key), None)
        pairs.append(pair if plant is None else defects.rewrite(pair, plant, job.seed))
    for plant in job.plants:
        if plant.defect == "near_duplicate":
            pairs.append(defects.copy_of(pairs[plant.twin], plant))
    return pairs


def draw_job(job: Job) -> None:
    """Draw and encode what is not there yet of one scene. Files appear whole or not at all."""
    cv2.setNumThreads(1)
    scenes = make_twins(job.seed, job.index)
    for pair in describe(job):
        path = job.folder / pair.video
        if path.exists():
            continue
        temporary = path.with_suffix(".part")
        plant = next((p for p in job.plants if p.key == pair.key), None)
        if plant is None:
            encode_video(temporary, draw_frames(scenes[pair.key.endswith("-b")]))
        else:
            defects.draw(temporary, scenes[plant.twin], plant, job.seed, encode_video)
        temporary.replace(path)


def encode_video(
    path: Path, frames: Iterable[NDArray[np.uint8]], fps: int = FPS, quality: int = QUALITY, group: int = STATE_FRAMES
) -> None:
    """Write frames [F H W 3] uint8 RGB as H.264 in MP4. Height and width are even; a key frame each `group` frames.

    Every key state is a key frame coded at a fixed quantiser, so the same state decodes to the same pixels in both
    twins: the codec gives no hint of the order.
    """
    options = {
        "preset": "ultrafast", "qp": str(quality), "threads": "1",
        "x264-params": f"keyint={group}:min-keyint={group}:scenecut=0:bframes=0",
    }  # fmt: skip
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(frames):
            if number == 0:
                stream.height, stream.width = picture.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def pair_line(pair: Pair) -> dict[str, Any]:
    """A pair as a line of pairs.jsonl."""
    return dataclasses.asdict(pair) | {"questions": [question.to_dict() for question in pair.questions]}


def publish_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a JSON object a line, whole or not at all."""
    _write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _write_whole(path: Path, content: bytes) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
