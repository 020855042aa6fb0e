"""The loader beside webdataset, LanceDB's loader, Energon, and decoding the source: pairs a second, same clips.

Run: make bench-data. Peers are measured where they can be imported: pip install -c constraints.txt webdataset pylance
megatron-energon (the constraint keeps torch where it is). To leave an environment as it is, put them into another one,
python3.11 -m venv PEERS, with a file PEERS/lib/python3.11/site-packages/shared.pth that holds the path of the first
one's site-packages, and run PEERS/bin/python bench/data.py with OMP_NUM_THREADS=1.

All give batches of the same pictures, decoded into their place in the batch by the same function from the same JPEG
frames (at most 64 at 2 FPS, short side 256, cut to 224); the source's side decodes the videos with PyAV as a plain
PyTorch dataset would. Ours alone also tokenises and packs the text, puts clips of like length together, which pads
less, and each of its processes verifies the hash of a shard at its first read: 1 ms of processor for 1.5 MB, which on
these few shards is over before anything is counted.
Sides take turns, all processes of the others stopped; each turn begins with batches that are not counted, more than any
side makes ahead. Clips differ in length, so time is taken by frame and given for a pair of the mean length. One thread
each; "workers" are processes, and processor time and memory count them too. Writes bench/results/data.json.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import torch
from apart import Side, Turn
from fair import RESULTS, ROUNDS, quartiles, write
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from xgenvideo import recipes
from xgenvideo.config import override
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.dataset import Dataset as Clips
from xgenvideo.data.dataset import open_dataset
from xgenvideo.data.frames import decode_frames, fit_square
from xgenvideo.data.generate import generate
from xgenvideo.data.loader import Loader
from xgenvideo.data.shards import write_dataset
from xgenvideo.data.text import texts
from xgenvideo.data.tokenizer import Tokenizer, train_tokenizer
from xgenvideo.data.video import nearest_frames, sample_video
from xgenvideo.records import Sample

PAIRS, FRAMES, FPS, SHORT_SIDE, SIZE, QUALITY = 8, 64, 2.0, 256, 224, 90
COUNTED, UNCOUNTED = 24, 8
SOURCE_COUNTED = 8  # decoding the source takes so long that these are enough, and one without processes
SHARD_BYTES = 2 * 2**20  # several for each process: webdataset gives out whole shards
ENDLESS = 2**40


@dataclass(frozen=True)
class Clip:
    """A video file and its caption."""

    path: Path
    caption: str


def clips_of(folder: Path) -> list[Clip]:
    """Videos named in a folder's captions.jsonl or pairs.jsonl, those that can be sampled."""
    name, key = ("captions.jsonl", "video") if (folder / "captions.jsonl").exists() else ("pairs.jsonl", "video")
    lines = (json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines())
    return [Clip(folder / line[key], line["caption"]) for line in lines]


def write_clips(clips: Sequence[Clip], folder: Path) -> Clips:
    """The clips as a dataset of ours, which is also one of WebDataset's."""

    def samples() -> Iterator[Sample]:
        for number, clip in enumerate(clips):
            video = sample_video(clip.path, FPS, FRAMES, short_side=SHORT_SIDE)
            jpegs = tuple(jpeg(frame) for frame in video.frames)
            key = f"clip-{number:05d}"
            pts = tuple(video.pts.tolist())
            yield Sample(key, jpegs, pts, clip.caption, key, lineage={"path": str(clip.path)})

    return write_dataset(folder, samples(), {"name": "bench"}, shard_bytes=SHARD_BYTES)


def jpeg(frame: Any) -> bytes:
    """A picture [H W 3] RGB as it is stored."""
    found: bytes = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return found


@dataclass(frozen=True)
class Stored:
    """A sample as it is stored, with what the picture function needs."""

    key: str
    jpegs: Sequence[bytes]
    caption: str


class Padded(NamedTuple):
    """Frames [B F 3 S S] padded with zeros, captions, and how many frames are no padding."""

    frames: Tensor
    captions: list[str]
    present: int


def padded(samples: Sequence[Stored]) -> Padded:
    """A batch of JPEG frames, decoded by our function on every side."""
    counts = [len(sample.jpegs) for sample in samples]
    batch = torch.empty((len(samples), max(counts), 3, SIZE, SIZE), dtype=torch.uint8)
    for row, sample in zip(batch, samples, strict=True):
        decode_frames(sample, SIZE, room=row)  # type: ignore[arg-type]
        row[len(sample.jpegs) :] = 0
    return Padded(batch, [sample.caption for sample in samples], sum(counts))


def padded_pictures(samples: Sequence[tuple[Tensor, str]]) -> Padded:
    """A batch of pictures that are there."""
    counts = [len(frames) for frames, _ in samples]
    batch = torch.zeros((len(samples), max(counts), 3, SIZE, SIZE), dtype=torch.uint8)
    for row, (frames, _) in zip(batch, samples, strict=True):
        row[: len(frames)] = frames
    return Padded(batch, [caption for _, caption in samples], sum(counts))


def start_worker(number: int) -> None:
    """One thread for each process."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def process_options(workers: int) -> dict[str, Any]:
    """What a DataLoader with processes is given on every side."""
    if not workers:
        return {"num_workers": 0}
    return {
        "num_workers": workers,
        "worker_init_fn": start_worker,
        "multiprocessing_context": "forkserver",
        "persistent_workers": True,
    }


def ours(dataset: Clips, tokenizer: Tokenizer, workers: int, scratch: Path) -> Iterator[Any]:
    """Our loader."""
    settings = [f"model.vision.image_size={SIZE}", f"data.frames={FRAMES}", "data.text_tokens=128"]
    settings += [f"train.global_batch_pairs={PAIRS}", f"layout.microbatch_pairs={PAIRS}", f"data.workers={workers}"]
    loader = Loader(dataset, tokenizer, override(recipes.find("tiny"), settings))
    while True:
        yield loader.next_batch()


def webdataset_sample(sample: dict[str, Any]) -> Stored:
    """One sample of our shards as webdataset reads them."""
    jpegs = [sample[name] for name in sorted(name for name in sample if name.endswith(".jpg"))]
    return Stored(sample["__key__"], jpegs, json.loads(sample["json"])["caption"])


def by_webdataset(dataset: Clips, tokenizer: Tokenizer, workers: int, scratch: Path) -> Iterator[Any]:
    """The same shards by webdataset, shuffled in a buffer of 100."""
    wds = importlib.import_module("webdataset")
    shards = sorted(str(path) for path in dataset.folder.glob("*.tar"))

    def passes() -> Any:
        found = wds.WebDataset(shards, shardshuffle=len(shards), seed=1, empty_check=False).shuffle(100)
        return found.map(webdataset_sample).batched(PAIRS, collation_fn=padded)

    loader = wds.WebLoader(passes().repeat(), batch_size=None, **process_options(workers))
    return iter(loader)


def padded_rows(rows: Sequence[dict[str, Any]]) -> Padded:
    """A batch of rows of a Lance dataset."""
    return padded([Stored(row["key"], row["jpegs"], row["caption"]) for row in rows])


def shuffled(rows: Dataset[Any], collate: Callable[[Any], Padded], workers: int) -> Iterator[Any]:
    """By PyTorch's DataLoader, one pass after the other without a pause, as within a long one."""
    sampler = RandomSampler(rows, num_samples=ENDLESS)  # type: ignore[arg-type]
    return iter(DataLoader(rows, PAIRS, sampler=sampler, collate_fn=collate, **process_options(workers)))


def by_lance(dataset: Clips, tokenizer: Tokenizer, workers: int, scratch: Path) -> Iterator[Any]:
    """The same frames in a Lance dataset by LanceDB's loader for PyTorch, shuffled whole."""
    lance, loading = importlib.import_module("lance"), importlib.import_module("lance.torch.data")
    path = scratch / "clips.lance"
    if not path.exists():
        found = [dataset.read_row(row) for row in dataset.rows("train")]
        columns = {name: [getattr(sample, name) for sample in found] for name in ("key", "caption")}
        columns |= {"jpegs": [list(sample.jpegs) for sample in found], "pts": [list(sample.pts) for sample in found]}
        lance.write_dataset(pa.table(columns), str(path))
    return shuffled(loading.SafeLanceDataset(str(path)), padded_rows, workers)


def by_energon(dataset: Clips, tokenizer: Tokenizer, workers: int, scratch: Path) -> Iterator[Any]:
    """The same shards by Megatron Energon, shuffled in a buffer of 100."""
    energon = importlib.import_module("megatron.energon")
    from energon_side import encoder, prepared

    settings = energon.WorkerConfig(rank=0, world_size=1, num_workers=workers)
    found = energon.get_train_dataset(
        prepared(dataset.folder, scratch / "energon"),
        batch_size=PAIRS,
        shuffle_buffer_size=100,
        max_samples_per_sequence=None,
        worker_config=settings,
        task_encoder=encoder(webdataset_sample, padded),
    )
    # Its watchdog would take the time in which it is stopped for a hanging sample.
    return iter(energon.get_loader(found, watchdog_timeout_seconds=None))


class Sources(Dataset[Any]):
    """The videos themselves, decoded from their start to their end as a plain dataset does."""

    def __init__(self, paths: Sequence[str], captions: Sequence[str]) -> None:
        self.paths, self.captions = paths, captions

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, str]:
        import av

        with av.open(self.paths[number]) as container:
            container.streams.video[0].thread_count = 1
            frames = list(container.decode(video=0))
        times = np.array([frame.time or 0.0 for frame in frames])
        chosen = [frames[i] for i in nearest_frames(times - times[0], FPS, FRAMES)]
        made = np.stack([self._picture(frame) for frame in chosen])
        return torch.from_numpy(made), self.captions[number]

    @staticmethod
    def _picture(frame: Any) -> Any:
        scale = min(1.0, SHORT_SIDE / min(frame.width, frame.height))
        size = round(frame.width * scale), round(frame.height * scale)
        return fit_square(frame.reformat(*size, format="rgb24").to_ndarray(), SIZE).transpose(2, 0, 1)


def from_source(dataset: Clips, tokenizer: Tokenizer, workers: int, scratch: Path) -> Iterator[Any]:
    """PyAV in a PyTorch DataLoader."""
    rows = list(dataset.rows("train"))
    sources = Sources([dataset.read_row(row).lineage["path"] for row in rows], [row.caption for row in rows])
    return shuffled(sources, padded_pictures, workers)


Start = Callable[[Clips, Tokenizer, int, Path], Iterator[Any]]
SIDES: dict[str, tuple[str, str, Start]] = {
    "ours": ("", "", ours),
    "webdataset": ("webdataset", "webdataset", by_webdataset),
    "lance": ("lance", "pylance", by_lance),
    "energon": ("megatron.energon", "megatron-energon", by_energon),
    "source": ("", "", from_source),
}


def start(name: str, dataset: Path, tokenizer: Path, workers: int, scratch: Path) -> Iterator[Any]:
    """The batches of a side, in a process of its own."""
    start_worker(0)
    return SIDES[name][2](open_dataset(dataset), tokenizers.load(tokenizer), workers, scratch)


def importable(module: str) -> bool:
    """Whether a peer is there."""
    try:
        return not module or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def turn_of(name: str, workers: int) -> tuple[int, int]:
    """How many batches of a side are counted in a turn, after how many others."""
    if name != "source":
        return COUNTED, UNCOUNTED
    return (SOURCE_COUNTED, UNCOUNTED) if workers else (1, 0)  # without processes nothing is made ahead


def measure(sides: dict[str, Side], workers: int, rounds: int, frames: float) -> dict[str, dict[str, Any]]:
    """Medians of every side for a pair of so many frames, and ours over each, by round."""
    taken: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(sides), len(sides)):
            found = sides[name].turn(*turn_of(name, workers))
            if number:
                taken[name].append(found)
    rows = {}
    for name, turns in taken.items():
        low, middle, high = compare(taken["ours"], turns, "wall")
        busy = compare(taken["ours"], turns, "busy")
        rows[name] = {
            "pairs_per_second": round(1 / frames / statistics.median(turn.wall for turn in turns), 1),
            "processor_ms_a_pair": round(1e3 * frames * statistics.median(turn.busy for turn in turns), 2),
            "memory_mb": round(turns[-1].memory_mb),
            "ours_times_as_fast": middle,
            "quartiles": [low, high],
            "processor_over_ours": busy[1],
            "processor_quartiles": [busy[0], busy[2]],
        }
    return rows


def compare(ours: Sequence[Turn], theirs: Sequence[Turn], of: str) -> list[float]:
    """Quartiles of their time over ours, turn by turn."""
    return quartiles([getattr(turn, of) for turn in theirs], [getattr(turn, of) for turn in ours])


def run(folder: Path, name: str, rounds: int, workers: Sequence[int]) -> dict[str, Any]:
    """One set of clips, with every number of processes."""
    with tempfile.TemporaryDirectory() as scratch:
        dataset = write_clips(clips_of(folder), Path(scratch) / "dataset")
        tokenizer = Path(scratch) / "tokenizer.json"
        train_tokenizer(texts(dataset.rows("train")), 1024).save(tokenizer)
        there = [name for name, (module, _, _) in SIDES.items() if importable(module)]
        frames = sum(row.frames for row in dataset.rows("train"))
        found: dict[str, Any] = {}
        for count in workers:
            with contextlib.ExitStack() as stack:
                given = (dataset.folder, tokenizer, count, Path(scratch))
                sides = {name: stack.enter_context(Side(start, (name, *given))) for name in there}
                found[f"{count} workers"] = measure(sides, count, rounds, frames / len(dataset))
            print(name, count, json.dumps(found[f"{count} workers"], indent=1), flush=True)
        return {"clips": len(dataset), "frames": frames, "workers": found}


def main() -> None:
    """Measure on generated clips, and on a folder of one's own where it is given."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--clips", type=Path, help="a folder with captions.jsonl or pairs.jsonl and the videos it names"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "data.json")
    asked = parser.parse_args()
    start_worker(0)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "clips", 160, 0, 0.0)
        rows["generated clips"] = run(Path(folder) / "clips", "generated", asked.rounds, asked.workers)
    if asked.clips:
        rows[f"clips of {asked.clips.name}"] = run(asked.clips, asked.clips.name, asked.rounds, asked.workers)
    peers = [package for module, package, _ in SIDES.values() if module and importable(module)]
    about = {
        "batch": PAIRS,
        "pictures": f"{FPS:g} FPS, at most {FRAMES}, short side {SHORT_SIDE}, {SIZE} x {SIZE}",
        "rounds": asked.rounds,
        "missing": [name for name, (module, _, _) in SIDES.items() if not importable(module)],
    }
    write(asked.out, {"about": about, "rows": rows}, *peers)


if __name__ == "__main__":
    main()
