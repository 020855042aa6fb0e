"""A loader run that is killed at seeded instants and goes on with another number of ranks: FOLDER KILLS.

Each run is a forked process that reads every rank's batches, notes them in a journal and saves the state as a trainer
does. SIGKILL may fall anywhere. Prints what was checked as JSON; ends with an AssertionError at the first fault.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from xgenvideo import recipes
from xgenvideo.config import override
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.dataset import Dataset, open_dataset
from xgenvideo.data.loader import Loader
from xgenvideo.data.shards import write_dataset
from xgenvideo.records import Sample

SAMPLES = 203
PAIRS = 16
SAVE_EVERY_BATCHES = 3
SIZES = (1, 2, 4, 8)
SEED = 17
SETTINGS = ["layout.microbatch_pairs=1", "data.text_tokens=48", "data.bucket_batches=3"]
# One sample in 29 is bad by design: a quick reader must not stop for them before it is killed.
CONFIG = override(recipes.find("tiny"), [f"train.global_batch_pairs={PAIRS}", *SETTINGS, "data.bad_share=0.1"])


def make_dataset(folder: Path) -> Dataset:
    """Small clips of 1 to 5 frames; every 29th has a frame that is no picture, so that substitutes are drawn."""
    jpeg = cv2.imencode(".jpg", np.full((32, 32, 3), 90, np.uint8))[1].tobytes()
    samples = []
    for number in range(SAMPLES):
        pictures = [jpeg] * (1 + number % 5)
        if number % 29 == 7:
            pictures[0] = b"bad"
        pts = tuple(index / 2 for index in range(len(pictures)))
        samples.append(Sample(f"k{number}", tuple(pictures), pts, f"clip {number}", f"s{number // 3}"))
    return write_dataset(folder, samples, {}, shard_bytes=60_000)


def read_until_killed(dataset: Dataset, work: Path, ranks: int) -> None:
    """Read batches, append each to the journal, then save the state by rename; never returns."""
    words = tokenizers.train_tokenizer(["clip"], 260)
    loaders = [Loader(dataset, words, CONFIG, rank, ranks) for rank in range(ranks)]
    saved = work / "state.json"
    if saved.exists():
        for loader in loaders:
            loader.load_state(json.loads(saved.read_text()))
    with open(work / "journal.jsonl", "ab", buffering=0) as journal:
        # A torn last line of the run before must not swallow the first of this one.
        journal.write(b"\n")
        while True:
            batches = [loader.next_batch() for loader in loaders]
            line = {"position": batches[0].position, "ranks": ranks, "keys": [k for b in batches for k in b.keys]}
            journal.write(json.dumps(line).encode() + b"\n")
            if loaders[0].samples_consumed % (SAVE_EVERY_BATCHES * PAIRS) == 0:
                (work / "state.tmp").write_text(json.dumps(loaders[0].state()))
                os.replace(work / "state.tmp", saved)


def run_and_kill(dataset: Dataset, work: Path, ranks: int, seconds: float) -> None:
    """One run in a child process, killed `seconds` after it was started."""
    child = os.fork()
    if child == 0:
        try:
            read_until_killed(dataset, work, ranks)
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the run ended by itself, before it was killed"


def check(dataset: Dataset, work: Path) -> dict[str, Any]:
    """What was trained on, by the saved state: each readable sample in each epoch, at one place only."""
    consumed = json.loads((work / "state.json").read_text())["samples_consumed"]
    at: dict[int, list[str]] = {}
    again, sizes = 0, set()
    for raw in (work / "journal.jsonl").read_bytes().splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        again += line["position"] in at
        sizes.add(line["ranks"])
        assert at.setdefault(line["position"], line["keys"]) == line["keys"], f"other samples at {line['position']}"
    kept = {position: keys for position, keys in at.items() if position < consumed}
    assert sorted(kept) == list(range(0, consumed, PAIRS)), "a batch is missing from what was consumed"
    flat = [key for position in sorted(kept) for key in kept[position]]
    bad = {f"k{number}" for number in range(SAMPLES) if number % 29 == 7}
    epochs = len(flat) // SAMPLES
    for epoch in range(epochs):
        counts = Counter(flat[epoch * SAMPLES : (epoch + 1) * SAMPLES])
        assert set(counts) == set(dataset.keys("train")) - bad, f"epoch {epoch} lost samples"
        # One extra reading for each bad sample, the substitute's; not one more.
        assert sum(counts.values()) - len(counts) == len(bad), f"epoch {epoch} repeats samples"
    return {
        "samples_consumed": consumed,
        "epochs_finished": epochs,
        "batches_read_again": again,
        "sizes_that_read": sorted(sizes),
    }


def main(folder: Path, kills: int) -> None:
    """Kill `kills` runs; check after each; print the totals."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    dice = random.Random(SEED)
    make_dataset(folder / "dataset")
    dataset = open_dataset(folder / "dataset")
    plan = [SIZES[number % len(SIZES)] for number in range(kills)]
    dice.shuffle(plan)
    found: dict[str, Any] = {}
    for ranks in plan:
        run_and_kill(dataset, folder, ranks, dice.uniform(0.05, 0.4))
        if (folder / "state.json").exists():
            found = check(dataset, folder)
    print(json.dumps({"kills": kills, **found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
