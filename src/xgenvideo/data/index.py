"""What a loader needs of a manifest, in files that every process maps: no process holds the rows.

Made beside the shards when a dataset is written, or at the first opening of one that has none; named by the manifest's
hash, so that a stale one is never found. The manifest stays what counts: an index may be removed and is made again.
"""

import hashlib
import json
import mmap
import os
import secrets
import shutil
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as parquet
from numpy.typing import NDArray

from xgenvideo.errors import DataError

VERSION = 1
GROUP = 1 << 10
ROWS, OFFSETS = "rows.jsonl", "offsets.bin"
PLACE = np.dtype([("number", "<i8"), ("frames", "<i8"), ("source", "<i8"), ("start", "<f8"), ("end", "<f8")])


def index_path(folder: Path, manifest_sha256: str) -> Path:
    """The folder of the index of this manifest."""
    return folder / f"index-{VERSION}-{manifest_sha256[:16]}"


class Index:
    """The rows of a dataset by number: `offsets` [N + 1] into the file of rows, and for each split a `PLACE` a sample.

    Raises DataError for files that do not fit each other.
    """

    def __init__(self, path: Path, counts: dict[str, int]) -> None:
        self.path, self.counts = path, counts
        self.offsets = np.memmap(path / OFFSETS, dtype="<i8", mode="r")
        self.places = {split: _mapped(path / f"{split}.bin") for split, count in counts.items() if count}
        with open(path / ROWS, "rb") as file:
            self._rows = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        found = {split: len(places) for split, places in self.places.items()}
        expected = {split: count for split, count in counts.items() if count}
        whole = len(self) == sum(expected.values()) and int(self.offsets[-1]) == len(self._rows)
        if found != expected or not whole:
            told = f"{found} of {expected} samples, {len(self._rows)} of {int(self.offsets[-1])} bytes"
            raise DataError(f"{path}: does not hold the rows of the manifest ({told}); remove this folder")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> dict[str, Any]:
        """The values of one row."""
        start, end = self.offsets[number : number + 2].tolist()
        values: dict[str, Any] = json.loads(self._rows[start:end])
        return values

    def number(self, key: str) -> int | None:
        """The number of the row with this key, by reading through all of them; None where there is none."""
        # Quotes inside a text are escaped, so that this is found at the start of a line only.
        at = self._rows.find(f'{{"key": {json.dumps(key)}, '.encode())
        return None if at < 0 else bisect_right(self.offsets, at) - 1

    def places_of(self, split: str) -> NDArray[Any]:
        """A `PLACE` for each sample of a split, in the order written."""
        return self.places.get(split, np.empty(0, dtype=PLACE))


class IndexWriter:
    """Writes an index below `path`, a row of the manifest at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self._rows: BinaryIO = open(path / ROWS, "wb")  # noqa: SIM115 (closed in `close`)
        self._offsets: BinaryIO = open(path / OFFSETS, "wb")  # noqa: SIM115
        self._places: dict[str, BinaryIO] = {}
        self._number = self._bytes = 0
        self._offsets.write(np.int64(0).tobytes())

    def __enter__(self) -> "IndexWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append one row of the manifest; its lineage stays there, but for the clip's times in its source."""
        values = {name: row[name] for name in sorted(row) if name not in ("key", "lineage")}
        # The key comes first: it is looked for.
        line = json.dumps({"key": row["key"], **values}).encode() + b"\n"
        self._rows.write(line)
        self._bytes += len(line)
        self._offsets.write(np.int64(self._bytes).tobytes())
        split = row["split"]
        if split not in self._places:
            self._places[split] = open(self.path / f"{split}.bin", "wb")  # noqa: SIM115
        lineage = json.loads(row["lineage"])
        times = (np.nan if lineage.get(name) is None else float(lineage[name]) for name in ("start", "end"))
        place = np.array([(self._number, row["frames"], source_number(row["source"]), *times)], dtype=PLACE)
        self._places[split].write(place.tobytes())
        self._number += 1

    def close(self) -> None:
        """End every file and flush it to disk."""
        for file in (self._rows, self._offsets, *self._places.values()):
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()


def source_number(source: str) -> int:
    """A number under 2**63 that is equal for equal sources (the start of a SHA-256)."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "big") >> 1


def make_index(manifest: Path, path: Path) -> None:
    """Make the index of a manifest that has none; a few rows are in memory at a time. Raises DataError."""
    temporary = path.with_name(f"{path.name}.tmp-{secrets.token_hex(4)}")
    try:
        with IndexWriter(temporary) as writer:
            for batch in parquet.ParquetFile(manifest).iter_batches(GROUP):
                _write_all(writer, batch.to_pylist())
        publish_once(temporary, path, OFFSETS)
    except OSError as error:
        cure = "open the dataset once where its folder can be written"
        raise DataError(f"{path}: the index of the manifest cannot be made here ({error}); {cure}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_once(temporary: Path, path: Path, mark: str) -> None:
    """Rename a folder into place; one with the file `mark` that another process published meanwhile is as good."""
    try:
        os.rename(temporary, path)
    except OSError as error:
        if not (path / mark).is_file():
            raise DataError(f"{path}: cannot be written ({error}); remove this folder, it is made again") from error
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush to disk a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(writer: IndexWriter, rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        writer.write(row)


def _mapped(path: Path) -> NDArray[Any]:
    """The places in a file; none where it is missing, which the counts then tell."""
    return np.memmap(path, dtype=PLACE, mode="r") if path.is_file() else np.empty(0, dtype=PLACE)
