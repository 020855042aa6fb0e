"""The dataset of what was kept: shards, by as many child processes as there are cores, and what lies beside them.

A slice of the inputs is a child's job; each has shards of its own, so that the bytes do not hang on who writes them.
"""

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from xgenvideo.curate.clips import clip_path, read_clip
from xgenvideo.curate.inputs import Inputs, Item, read_slice
from xgenvideo.curate.pairs import choose_split
from xgenvideo.curate.settings import CurateSettings
from xgenvideo.curate.stages import Workplace
from xgenvideo.curate.tally import Tally
from xgenvideo.curate.units import as_error, write_whole
from xgenvideo.data.confined import start_child
from xgenvideo.data.shards import Assembly, publish, write_group
from xgenvideo.data.text import texts
from xgenvideo.data.tokenizer import train_tokenizer
from xgenvideo.errors import DataError
from xgenvideo.records import Sample

FORMAT = 2  # of what curation writes
OUR_FILES = ("audit.jsonl", "report.html", "curation.json", "tokenizer.json")


def write_out(inputs: Inputs, tally: Tally, work: Workplace, out: Path) -> None:
    """The dataset in one rename, then what stands beside it."""
    if out.is_dir() and not (out / "dataset.json").exists():
        for name in OUR_FILES:  # of an earlier run that kept nothing
            (out / name).unlink(missing_ok=True)
            (out / f"{name}.part").unlink(missing_ok=True)  # and was killed
    if tally.kept:
        card = {"curation": FORMAT, "settings": work.settings.to_dict(), "dropped": tally.dropped}
        publish(out, partial(_fill, inputs, work, tally.kept), card)
        if tally.splits["train"]:
            learned = (item.pair for item in inputs if item.kept and item.split == "train")
            temporary = out / "tokenizer.json.part"
            train_tokenizer(texts(learned), work.settings.vocabulary).save(temporary)
            temporary.replace(out / "tokenizer.json")
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: holds something else, and nothing of the input was kept; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "audit.jsonl", (json.dumps(item.to_dict()) + "\n" for item in inputs))


@dataclass(frozen=True)
class Job:
    """What a child is told: a slice of the inputs, where its decoded clips lie, and where its shards go."""

    slice: str
    clips: str
    sampling: str  # that the clips were decoded with
    heldout_share: float
    group: str
    parent: int  # its process: the child does not outlive it

    def write(self) -> None:
        """Write the group."""
        items = read_slice(Path(self.slice))
        write_group(Path(self.group), _samples(items, Path(self.clips), self.sampling, self.heldout_share))


def _fill(inputs: Inputs, work: Workplace, kept: int, assembly: Assembly) -> None:
    """Every kept input, in the order of the input: a group of shards of each slice, where there are several."""
    share = work.settings.heldout_share
    if len(inputs.paths) == 1:
        samples = _samples(inputs, work.clips, work.sampling, share)
        return assembly.write(work.tell("write", samples, kept))
    groups = assembly.folder / "groups"
    groups.mkdir()
    about = (str(work.clips), work.sampling, share)
    jobs = [Job(str(path), *about, str(groups / path.stem), os.getpid()) for path in inputs.paths]
    for group in _in_children(jobs, work.settings):
        assembly.take(group)
        work.report("write", len(assembly), kept)
    return groups.rmdir()


def _in_children(jobs: Iterable[Job], settings: CurateSettings) -> Iterator[Path]:
    """The groups of the jobs in order, as they are written."""
    running: set[subprocess.Popen[bytes]] = set()

    def run(job: Job) -> Path:
        child = start_child("xgenvideo.curate.write_child", settings.unit_memory_mb)
        running.add(child)
        said, _ = child.communicate(json.dumps(asdict(job)).encode())
        running.discard(child)
        if child.returncode or not said:
            raise DataError(
                f"a process that writes shards ended with code {child.returncode}; is the disk full, or "
                f"curate.unit_memory_mb = {settings.unit_memory_mb} too small? what was decoded is kept: run again"
            )
        answer = json.loads(said)
        if "error" in answer:
            raise as_error(answer)
        return Path(job.group)

    with ThreadPoolExecutor(settings.processes) as pool:
        try:
            yield from pool.map(run, jobs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in list(running):
                child.kill()


def _samples(items: Iterable[Item], clips: Path, sampling: str, heldout_share: float) -> Iterator[Sample]:
    """Of the kept items."""
    for item in items:
        if not item.kept:
            continue
        pair = choose_split(item.pair, heldout_share)
        clip = read_clip(clip_path(clips, sampling, str(item.content)))
        yield Sample(
            key=pair.key,
            jpegs=clip.jpegs,
            pts=tuple(round(float(second), 6) for second in clip.pts),
            caption=pair.caption,
            source=pair.source,
            questions=pair.questions,
            twin=pair.twin,
            split=str(pair.split),
            licence=pair.licence,
            lineage=item.lineage(),
        )
