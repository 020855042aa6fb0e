"""From a sample back to its source, and a source out of a dataset. Run: `xgv trace`, `xgv forget`."""

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xgenvideo.curate.store import index_path
from xgenvideo.curate.units import write_whole
from xgenvideo.data.dataset import BETWEEN_KEYS, Dataset, open_dataset
from xgenvideo.data.shards import sync, write_dataset
from xgenvideo.errors import DataError
from xgenvideo.records import Sample

AUDIT, SUMMARY, TOKENIZER, RECORD = "audit.jsonl", "curation.json", "tokenizer.json", "forgotten.jsonl"
FEATURES = ".features"  # behind a dataset's name: where training keeps features of the frozen encoder
RENAME_EXCHANGE = 2
AT_FDCWD = -100


@dataclass(frozen=True)
class Forgotten:
    """What a takedown removed: samples of the dataset, inputs of its audit, decoded clips of its work folder."""

    source: str
    keys: tuple[str, ...]
    inputs: int
    clips: int
    fingerprint_before: str
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def trace(folder: Path, key: str) -> list[dict[str, Any]]:
    """Every input with this key or name, kept or not: source, times, every score and decision, its place in a shard.

    A sample that the loader stitched has the keys of its clips, with "+" between them: each is traced.
    Raises DataError for what is no curated dataset, or a key that never came in.
    """
    folder = Path(folder)
    found = [line for line in read_audit(folder) if key in (line["key"], line["name"])]
    if not found and BETWEEN_KEYS in key:
        return [line for each in key.split(BETWEEN_KEYS) for line in trace(folder, each)]
    if not found:
        raise DataError(f"{folder / AUDIT}: no input has the key or name {key!r}; its lines name all there are")
    if (folder / "dataset.json").exists():
        dataset = open_dataset(folder)
        return [line | _place(dataset, str(line["key"])) if line["status"] == "kept" else line for line in found]
    return found


def _place(dataset: Dataset, key: str) -> dict[str, Any]:
    row = dataset.find(key)
    dataset.verify_shard(row.shard)  # what is told of a shard holds for its bytes
    place = {"shard": row.shard, "index": row.index, "offset": row.offset, "bytes": row.bytes, "frames": row.frames}
    return {"place": place, "split": row.split, "licence": row.licence, "fingerprint": dataset.fingerprint}


def forget(folder: Path, source: str) -> Forgotten:
    """Write the dataset again without anything that came from `source`, and exchange it for the old one in one step.

    Removed with it: the audit's text and scores of its inputs (their lines stay, with the reason "forgotten"), report
    pages, which show pictures, its decoded clips and scores in the work folder, features cached beside the dataset, and
    all that killed runs left there: none may be at work. Features cached elsewhere are named by the fingerprint, which
    changes; runs on the old dataset cannot go on. Models trained before are not touched, nor is the vocabulary.

    Killed before the exchange, the dataset is the old one; after it, run again to remove what is left over.
    Raises DataError for a source that is not there, or that is all there is.
    """
    folder = Path(folder).absolute()
    _remove_leftovers(folder)
    dataset = open_dataset(folder)
    theirs = [line for line in read_audit(folder) if line.get("source") == source]
    rows = [row for split in dataset.counts for row in dataset.rows(split) if row.source == source]
    if not theirs and not rows:
        raise DataError(f"{folder}: nothing came from the source {source!r}; `xgv trace` tells a sample's source")
    _check_files(folder)
    keys = tuple(row.key for row in rows)
    if len(keys) == len(dataset):
        raise DataError(f"{folder}: all of its {len(keys)} samples came from {source!r}; remove the folder itself")
    work = _work(folder)
    contents = {str(line["content"]) for line in theirs if line.get("content")}
    # Before the exchange: a kill between them must not leave pictures that no audit line leads to any more.
    clips = _forget_work(work, contents)
    _forget_fetched(work, {str(line["video"]) for line in theirs if line.get("video")})
    fresh = folder.with_name(f"{folder.name}.forget-{secrets.token_hex(4)}")
    write_dataset(fresh, _others(dataset, source), dataset.card)
    after = open_dataset(fresh).fingerprint
    done = Forgotten(source, keys, len(theirs), clips, dataset.fingerprint, after)
    _write_beside(folder, fresh, done)
    _exchange(fresh, folder)
    shutil.rmtree(fresh)
    for features in folder.with_name(folder.name + FEATURES).glob(f"features-*-{dataset.fingerprint[:16]}-*"):
        shutil.rmtree(features)
    return done


def _check_files(folder: Path) -> None:
    """Refuse a dataset's folder that holds something else: it would go with the old one."""
    ours = {AUDIT, SUMMARY, TOKENIZER, RECORD, "report.html", "dataset.json", "manifest.parquet"}
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("index-"))
    others = [name for name in names if name not in ours and not name.endswith((".tar", ".part"))]
    if others:
        raise DataError(
            f"{folder}: holds what is no part of the dataset ({', '.join(others[:5])}), and a takedown exchanges the "
            "whole folder; move that elsewhere first"
        )


def _work(folder: Path) -> Path:
    """Where the run that wrote the dataset kept scores and decoded clips."""
    path = folder / SUMMARY
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Path(record.get("work", folder.with_name(folder.name + ".work")))


def read_audit(folder: Path) -> Iterator[dict[str, Any]]:
    """What became of each input, a line at a time. Raises DataError for what is no curated dataset."""
    path = Path(folder) / AUDIT
    if not path.is_file():
        raise DataError(f"{path}: is missing; give a dataset that `xgv curate` wrote")
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _others(dataset: Dataset, source: str) -> Iterator[Sample]:
    """Samples in the order they were written, so that a shard that held none of the source stays as it is."""
    for number in range(len(dataset)):
        row = dataset.row(number)
        if row.source != source:
            yield dataset.read_row(row)


def _emptied(line: dict[str, Any]) -> dict[str, Any]:
    """What stays of an input, so that the sums still hold: its number and that it was forgotten."""
    name = f"forgotten-{line['number']}"
    kept = {"number": line["number"], "name": name, "key": name}
    return kept | {"status": "dropped", "step": "forget", "reason": "forgotten", "detail": ""}


def _write_beside(folder: Path, fresh: Path, done: Forgotten) -> None:
    """The files beside the shards; report pages are left behind, because they show pictures."""
    statuses, dropped = Counter[str](), Counter[str]()

    def lines() -> Iterator[str]:
        for line in read_audit(folder):
            left = _emptied(line) if line.get("source") == done.source else line
            statuses[left["status"]] += 1
            if left["reason"] is not None:
                dropped[str(left["reason"])] += 1
            yield json.dumps(left) + "\n"

    write_whole(fresh / AUDIT, lines())
    if (folder / TOKENIZER).exists():
        shutil.copyfile(folder / TOKENIZER, fresh / TOKENIZER)
    if (folder / SUMMARY).exists():
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        kept, failed = statuses["kept"], statuses["failed"]
        counts = {split: count for split, count in open_dataset(fresh).counts.items() if count}
        summary |= {"pairs_kept": kept, "pairs_failed": failed, "dropped": dict(sorted(dropped.items()))}
        write_whole(fresh / SUMMARY, [json.dumps(summary | {"splits": counts}, indent=1)])
    # The record names the source by its hash: a takedown should not repeat what it takes down.
    digest = hashlib.sha256(done.source.encode()).hexdigest()
    record = {
        "source_sha256": digest,
        "samples": len(done.keys),
        "inputs": done.inputs,
        "before": done.fingerprint_before,
    }
    earlier = (folder / RECORD).read_text(encoding="utf-8") if (folder / RECORD).exists() else ""
    write_whole(fresh / RECORD, [earlier, json.dumps(record) + "\n"])
    sync(fresh)


def _forget_work(work: Path, contents: set[str]) -> int:
    """Remove decoded clips and stored scores of the contents; returns how many clips. They are made again if needed."""
    found = [path for content in contents for path in (work / "clips" / content[:2]).glob(f"{content[2:32]}-*")]
    for path in found:
        path.unlink(missing_ok=True)
    shutil.rmtree(work / "unpacked", ignore_errors=True)  # tars' videos; the next run unpacks what it needs
    shutil.rmtree(work / "units", ignore_errors=True)  # the ledger; the next run looks at what is stored
    _remove_unfinished(work)
    # Scores that are named by content and caption together are all removed: which are the source's is not in them.
    for store in (work / "scores").glob("semantic*.jsonl"):
        index_path(store).unlink(missing_ok=True)
        store.unlink()
    for store in (work / "scores").glob("*.jsonl"):
        _write_scores(store, lambda row: row["id"] not in contents)
    return sum(path.suffix == ".npz" for path in found)


def _remove_unfinished(work: Path) -> None:
    """What a killed run left: its inputs with their texts, frames looked through for shots, half-fetched videos."""
    for folder in (work / "scans", *work.glob("inputs*/"), *(work / "fetched").glob("part*/")):
        shutil.rmtree(folder, ignore_errors=True)
    for path in (*work.glob("*.part"), *(work / "scores").glob("*.part")):
        path.unlink(missing_ok=True)


def _write_scores(store: Path, stays: Callable[[dict[str, Any]], bool]) -> None:
    """A file of scores anew, with the rows that stay. Its index goes first: it is of the old one."""
    index_path(store).unlink(missing_ok=True)
    with store.open(encoding="utf-8") as file:
        write_whole(store, (line for line in file if line.endswith("\n") and stays(json.loads(line))))


def _forget_fetched(work: Path, urls: set[str]) -> None:
    """Remove the videos that were fetched from these URLs, and the notes of them."""
    for notes in (work / "scores").glob("download*.jsonl"):

        def stays(row: dict[str, Any]) -> bool:
            note = row["scores"]
            if note["url"] in urls:
                (work / "fetched" / f"{note.get('sha256')}.video").unlink(missing_ok=True)
            return note["url"] not in urls

        _write_scores(notes, stays)


def _exchange(fresh: Path, folder: Path) -> None:
    """Swap two folders in one step, by Linux's renameat2; no moment without a dataset."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        code = errno.ENOSYS
    else:
        code = 0
        if renameat2(AT_FDCWD, os.fsencode(fresh), AT_FDCWD, os.fsencode(folder), RENAME_EXCHANGE):
            code = ctypes.get_errno()
    if code:
        raise DataError(
            f"{folder}: this file system cannot exchange two folders ({os.strerror(code)}). {fresh} is the whole new "
            "dataset: move the old folder away and rename this one to its name"
        )
    sync(folder.parent)


def _remove_leftovers(folder: Path) -> None:
    """Folders of takedowns that were killed, not exchanged yet or the old data after the exchange; and of curations
    that were killed while they wrote this dataset.
    """
    for kind in ("forget", "tmp"):
        for left in folder.parent.glob(f"{folder.name}.{kind}-*"):
            if (folder / "dataset.json").exists():
                shutil.rmtree(left)
