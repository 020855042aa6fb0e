"""What search finds with and without moments, what an exact search costs, and what writing texts together saves.

Run: python bench/serving.py RELEASE (of the demonstration's model), one thread. Writes bench/results/serving.json.
"""

import argparse
import json
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fair import RESULTS, write
from numpy.typing import NDArray

from xgenvideo.data.generate import make_twins, render
from xgenvideo.data.generate.story import Scene
from xgenvideo.infer.embed import embed_text
from xgenvideo.infer.generate import Draw
from xgenvideo.infer.release import Release, Window, load_release
from xgenvideo.infer.search import Index, embed_spans, rank
from xgenvideo.infer.serving.engine import Engine, Job
from xgenvideo.records import SampledVideo

# A seed that the demonstration does not take, so that no scene was trained on.
SEED, SCENES, SCENES_A_VIDEO = 991, 60, 6
SPANS, WIDTHS, QUERIES = 1_000_000, (64, 256), 5
TEXTS, BATCHES, ROUNDS = 64, (1, 16), 5
Frames = NDArray[np.uint8]


def windows(release: Release, frames: Frames) -> Iterator[Window]:
    """The windows of a video whose frames [F H W 3] are those that sampling would take."""
    length, fps = release.config.data.frames, release.config.data.fps
    for number in range(-(-len(frames) // length)):
        numbers = np.arange(number * length, min(len(frames), (number + 1) * length))
        taken = SampledVideo(frames[numbers], numbers / fps, numbers, len(frames) / fps)
        yield release.window(number, taken)


def index_of(release: Release, videos: Iterable[Frames], moments: bool) -> Index:
    """An index in memory; the videos are named by their number."""
    rows: list[tuple[float, float, NDArray[np.float32]]] = []
    owners: list[int] = []
    for number, frames in enumerate(videos):
        taken = list(windows(release, frames))
        whole = {release.span(window) for window in taken}
        found = [row for row in embed_spans(release, taken) if moments or row[:2] in whole]
        rows += found
        owners += [number] * len(found)
    names = tuple(str(number) for number in range(owners[-1] + 1))
    return Index(
        np.stack([row[2] for row in rows]), np.array([row[:2] for row in rows]), np.array(owners), names, names, {}
    )


def first_hits(release: Release, scenes: list[Scene], clips: list[Frames], together: int, moments: bool) -> Any:
    """For `together` scenes a video: how often a caption's first hit is in its video, and its middle in its scene."""
    videos = [np.concatenate(clips[at : at + together]) for at in range(0, len(clips), together)]
    index = index_of(release, videos, moments)
    right = inside = 0
    for number, scene in enumerate(scenes):
        hit = rank(index, embed_text(release, scene.caption), 1)[0]
        before = sum(len(clip) for clip in clips[number // together * together : number]) / release.config.data.fps
        ours = int(hit.video.name) == number // together
        right += ours
        inside += ours and before <= (hit.start + hit.end) / 2 <= before + len(clips[number]) / release.config.data.fps
    count = len(scenes)
    return {"spans": len(index.vectors), "video_r_at_1": right / count, "middle_in_scene": inside / count}


def exact_search(width: int) -> dict[str, float]:
    """Processor and wall seconds of one query among SPANS random vectors."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((SPANS, width), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    owners, starts = np.divmod(np.arange(SPANS), 1900)
    names = tuple(str(number) for number in range(int(owners[-1]) + 1))
    index = Index(vectors, np.stack([starts * 2.0, starts * 2.0 + 8], 1), owners, names, names, {})
    rank(index, vectors[1], 10)
    wall, own = time.perf_counter(), time.process_time()
    for number in range(QUERIES):
        rank(index, vectors[number], 10)
    return {
        "processor_seconds": (time.process_time() - own) / QUERIES,
        "wall_seconds": (time.perf_counter() - wall) / QUERIES,
        "megabytes": vectors.nbytes / 1e6,
    }


def writing(release: Release, clips: list[Frames], batch: int) -> dict[str, float]:
    """Processor seconds for TEXTS descriptions of watched clips in batches of at most `batch`."""
    latents = [release.window_latents(next(windows(release, clip))) for clip in clips[:8]]
    sizes, turn, ended = list[int](), threading.Lock(), threading.Semaphore(0)
    tokens: list[int] = []

    def hear(word: object) -> None:
        if not isinstance(word, str):
            tokens.append(getattr(word, "tokens", 0))
            ended.release()

    engine = Engine(release, batch, turn, sizes.append)
    own = time.process_time()
    with turn:
        for number in range(TEXTS):
            engine.submit(Job(release.prompt_ids(""), latents[number % 8], 32, Draw(), hear))
    for _ in range(TEXTS):
        ended.acquire()
    seconds = time.process_time() - own
    engine.close()
    return {"processor_seconds": seconds, "tokens": sum(tokens), "batches": len(sizes)}


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("release", metavar="RELEASE")
    release = load_release(Path(parser.parse_args().release))
    torch.set_num_threads(1)
    scenes = [make_twins(SEED, number)[number % 2] for number in range(SCENES)]
    # Rendered at 8 frames a second; sampling takes every fourth.
    clips = [render(scene, 96)[::4] for scene in scenes]
    found: dict[str, Any] = {"release": release.identity[:12], "scenes": SCENES}
    found["search"] = {
        f"{together} scenes a video, {'windows and moments' if moments else 'windows alone'}": first_hits(
            release, scenes, clips, together, moments
        )
        for together in (1, SCENES_A_VIDEO)
        for moments in (False, True)
    }
    found["exact_search_of_a_million"] = {f"{width} numbers": exact_search(width) for width in WIDTHS}
    rounds = [{batch: writing(release, clips, batch) for batch in BATCHES} for _ in range(ROUNDS)]
    found["writing"] = {
        f"batches of at most {batch}": min((one[batch] for one in rounds), key=lambda one: one["processor_seconds"])
        for batch in BATCHES
    }
    print(json.dumps(found, indent=2))
    write(RESULTS / "serving.json", found)


if __name__ == "__main__":
    main()
