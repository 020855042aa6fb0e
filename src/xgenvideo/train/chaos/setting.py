"""What the faults are tried on: the recipe's own model, on a few generated clips, in a run of some dozen steps."""

from pathlib import Path

import cv2
import numpy as np

from xgenvideo.checkpoint.run import TOKENIZER
from xgenvideo.config import RunConfig, override
from xgenvideo.data.generate import key_frames, make_twins
from xgenvideo.data.shards import write_dataset
from xgenvideo.data.text import texts
from xgenvideo.data.tokenizer import train_tokenizer
from xgenvideo.records import Sample

STEPS, SAVE_EVERY, PAIRS, TWINS = 40, 4, 8, 32
LAYOUTS = {1: (), 2: ("layout.data=2",), 4: ("layout.pipeline=2", "layout.data=2")}


def small_run(config: RunConfig, dataset: Path, processes: int) -> RunConfig:
    """The recipe with a run short enough to be hurt often. `processes`: 1, 2 (data) or 4 (pipeline x data)."""
    changes = [f"data.shards={config.data.shards or dataset}", "data.cache_features=true", "train.precision=fp32"]
    changes += [f"train.steps={STEPS}", f"train.save_every_steps={SAVE_EVERY}", f"train.global_batch_pairs={PAIRS}"]
    changes += ["train.log_every_steps=1", "train.threads=1", "data.bucket_batches=0", "train.stop_after_steps=0"]
    changes += ["layout.tensor=1", "layout.pipeline=1", "layout.data=1", "layout.virtual_stages=1"]
    changes += ["layout.microbatch_pairs=2", "layout.schedule=1f1b", "train.keep_checkpoints=3", *LAYOUTS[processes]]
    return override(config, changes)


def small_dataset(folder: Path) -> Path:
    """Generated twins as a dataset in `folder`, made once."""
    if not (folder / "dataset.json").exists():
        samples = [sample for index in range(TWINS) for sample in twins(index)]
        dataset = write_dataset(folder, samples, {"title": "Clips for fault injection"})
        train_tokenizer(texts(dataset.rows("train")), 512).save(folder / TOKENIZER)
    return folder


def twins(index: int) -> list[Sample]:
    """A generated clip and its twin, their key states as frames at 2 frames a second."""
    keys = (f"clip{index}a", f"clip{index}b")
    found = []
    for key, twin, scene in zip(keys, keys[::-1], make_twins(0, index), strict=True):
        pictures = [np.ascontiguousarray(frame[:, :, ::-1]) for frame in key_frames(scene, 64)]
        jpegs = tuple(cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures)
        pts = tuple(number / 2 for number in range(len(jpegs)))
        found.append(
            Sample(key, jpegs, pts, scene.caption, f"scene-{index}", scene.questions, twin, "train", "CC0-1.0")
        )
    return found
