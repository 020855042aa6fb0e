"""data-juicer's part of bench/curation.py: PYTHON data_juicer_side.py LISTING OUT PROCESSES.

LISTING has a JSON object a line, "video" (a path) and "caption". Runs data-juicer's own executor over those of its
filters that need no model and have a step of ours beside them: length and repetition of the caption, length and size of
the video, motion (Farneback's optical flow at 2 FPS on frames of our size, as its `size` asks), equal videos. What it
keeps goes to OUT/kept.jsonl, its scores beside it: it stores no frames. Imports nothing of ours, so that it runs in an
environment of its own.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

FPS, SHORT_SIDE = 2, 256
FILTERS: list[dict[str, dict[str, Any]]] = [
    {"text_length_filter": {"min_len": 10, "max_len": 4000}},
    {"character_repetition_filter": {"rep_len": 10, "max_ratio": 0.5}},
    {"video_duration_filter": {"min_duration": 1, "video_backend": "av"}},  # its default calls the program ffmpeg
    {"video_resolution_filter": {"min_width": 16, "min_height": 16}},
    {"video_motion_score_filter": {"min_score": 0.0, "sampling_fps": FPS, "size": SHORT_SIDE}},
    {"video_deduplicator": {}},
]


def write_job(listing: Path, out: Path, processes: int) -> Path:
    """The listing as its samples, and its configuration (JSON, which is YAML too)."""
    rows = map(json.loads, listing.read_text(encoding="utf-8").splitlines())
    samples = [{"text": f"<__dj__video> {row['caption']}", "videos": [row["video"]]} for row in rows]
    given, job = out / "samples.jsonl", out / "job.yaml"
    given.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    settings = {
        "project_name": "bench",
        "dataset_path": str(given),
        "export_path": str(out / "kept.jsonl"),
        "work_dir": str(out / "work"),
        "np": processes,
        "auto_op_parallelism": False,  # else it takes all cores
        "use_cache": False,
        "skip_op_error": False,  # else a filter that cannot run drops every clip
        "process": FILTERS,
    }
    job.write_text(json.dumps(settings), encoding="utf-8")
    return job


def main() -> None:
    """Filter, export."""
    listing, out, processes = sys.argv[1:]
    job = write_job(Path(listing), Path(out), int(processes))
    executors = importlib.import_module("data_juicer.core.executor.default_executor")
    settings = importlib.import_module("data_juicer.config").init_configs(["--config", str(job)])
    executors.DefaultExecutor(settings).run(skip_return=True)


if __name__ == "__main__":  # its processes are spawned
    main()
