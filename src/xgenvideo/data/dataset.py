"""Reading a dataset: tar shards in WebDataset naming, a Parquet manifest, and `dataset.json` with every hash.

Nothing is ever overwritten and nothing is unpickled: a shard whose SHA-256 is not the recorded one is not read.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from xgenvideo.data.index import Index, index_path, make_index
from xgenvideo.errors import DataError
from xgenvideo.records import Question, Sample

VERSION = 1
BLOCK = 512
KEY_RULE = re.compile(r"[A-Za-z0-9_-]{1,80}")
BETWEEN_KEYS = "+"  # of the clips of a stitched sample; no key has it
SPLIT_RULE = re.compile(r"[a-z0-9_]{1,32}")
SHARD_RULE = re.compile(r"[a-z0-9_]{1,32}-\d{5,}\.tar")


@dataclass(frozen=True, repr=False)
class Row:
    """All of a sample but its frames and its lineage, as the manifest has it.

    pts in seconds; `offset` and `bytes`: place in the shard.
    """

    key: str
    split: str
    shard: str
    index: int
    offset: int
    bytes: int
    frames: int
    seconds: float
    pts: tuple[float, ...]
    caption: str
    questions: tuple[Question, ...]
    source: str
    twin: str | None
    licence: str

    def __repr__(self) -> str:
        return f"Row({self.key}, {self.shard}[{self.index}], frames={self.frames}, caption={self.caption!r})"


class Dataset:
    """A published dataset. `fingerprint` names its whole content; reading is random access by key or row number.

    Rows stay in mapped files, which all processes of a machine share.
    """

    def __init__(self, folder: Path, description: dict[str, Any], index: Index) -> None:
        self.folder = folder
        self.fingerprint: str = description["fingerprint"]
        self.card: dict[str, Any] = description["card"]
        self.counts: dict[str, int] = description["counts"]
        self._shards: dict[str, dict[str, Any]] = description["shards"]
        self._index = index
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, self.fingerprint, self._index.path)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        counts = ", ".join(f"{split}={count}" for split, count in sorted(self.counts.items()))
        return f"Dataset({self.folder}, {counts}, shards={len(self._shards)}, fingerprint={self.fingerprint[:12]})"

    def places(self, split: str) -> NDArray[Any]:
        """Of each sample of a split, in the order they were written: fields `number` (of its row), `frames`, `source`
        (a number, equal for samples of one source), `start` and `end` in its source (seconds, NaN where unknown).
        """
        return self._index.places_of(split)

    def keys(self, split: str) -> list[str]:
        """Keys of a split, in the order they were written; empty for a split that is not there."""
        return [row.key for row in self.rows(split)]

    def rows(self, split: str) -> Iterator[Row]:
        """Manifest rows of a split, in the order they were written."""
        return (self.row(int(number)) for number in self.places(split)["number"])

    def row(self, number: int) -> Row:
        """One manifest row by number."""
        values = self._index.row(number)
        questions = tuple(Question.from_dict(question) for question in json.loads(values["questions"]))
        return Row(**values | {"questions": questions, "pts": tuple(values["pts"])})

    def shard_rows(self) -> dict[str, NDArray[Any]]:
        """Of every shard by name, the numbers of its rows in the order they were written. Raises DataError."""
        found: dict[str, NDArray[Any]] = {}
        for split in sorted(self.counts):
            numbers, start = self.places(split)["number"], 0
            # Later shards have longer names from the 100,000th on.
            own = [shard for shard in self._shards if shard.rpartition("-")[0] == split]
            for shard in sorted(own, key=lambda name: (len(name), name)):
                samples = self._shards[shard]["samples"]
                found[shard] = numbers[start : start + samples]
                start += samples
            if start != len(numbers):
                told = f"{start} samples in the shards of {split!r}, {len(numbers)} in the manifest"
                raise DataError(f"{self.folder}/dataset.json: {told}; it was edited")
        return found

    def find(self, key: str) -> Row:
        """The manifest row of a key. Raises DataError for a key that is not there."""
        number = self._index.number(key)
        if number is None:
            raise DataError(f"{self.folder}: no sample has the key {key!r}; `keys(split)` lists those there are")
        return self.row(number)

    def read(self, key: str) -> Sample:
        """One sample with its JPEG frames. Raises DataError for an unknown key or a corrupt shard."""
        return self.read_row(self.find(key))

    def read_row(self, row: Row) -> Sample:
        """As `read`, for a manifest row of this dataset."""
        self.verify_shard(row.shard)
        with open(self.folder / row.shard, "rb") as file:
            region = os.pread(file.fileno(), row.bytes, row.offset)
        members = dict(_members(region))
        values = json.loads(members.pop(f"{row.key}.json"))
        return sample_from(values, tuple(members.values()))

    def verify_shard(self, shard: str) -> None:
        """Compare a shard's SHA-256 with the recorded one, once a process. Raises DataError naming shard and cure."""
        with self._lock:
            if shard in self._verified:
                return
            if shard not in self._shards:
                raise DataError(f"{self.folder}: the manifest names a shard {shard!r} that dataset.json does not list")
            path, expected = self.folder / shard, self._shards[shard]["sha256"]
            found = sha256_of(path) if path.is_file() else "no such file"
            if found != expected:
                raise DataError(
                    f"{path}: the shard is corrupt or missing (SHA-256 is {found}, dataset.json says {expected}). "
                    "Copy this shard again from its source, or curate again into a new folder"
                )
            self._verified.add(shard)

    def verify(self) -> None:
        """Verify every shard now. Raises DataError at the first bad one."""
        for shard in sorted(self._shards):
            self.verify_shard(shard)


def open_dataset(folder: Path) -> Dataset:
    """Open what `write_dataset` published; the manifest is verified here, each shard at its first read.

    Raises DataError: no dataset, another version, or a file that was changed.
    """
    folder = Path(folder)
    description = _description(folder)
    manifest = folder / "manifest.parquet"
    found = sha256_of(manifest) if manifest.is_file() else "no such file"
    if found != description["manifest_sha256"]:
        expected = description["manifest_sha256"]
        raise DataError(f"{manifest}: SHA-256 is {found}, dataset.json says {expected}. Copy the dataset again")
    path = index_path(folder, found)
    if not path.is_dir():
        make_index(manifest, path)
    return Dataset(folder, description, Index(path, description["counts"]))


def _reopened(folder: Path, fingerprint: str, index: Path) -> Dataset:
    """The same dataset in another process, which need not hash the manifest again."""
    description = _description(folder)
    if description["fingerprint"] != fingerprint:
        raise DataError(f"{folder}: is another dataset now (fingerprint {description['fingerprint']}); start again")
    return Dataset(folder, description, Index(index, description["counts"]))


def _description(folder: Path) -> dict[str, Any]:
    """What dataset.json says, checked."""
    try:
        description: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{folder}: no dataset.json here; `xgv curate` writes a dataset") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}/dataset.json: cannot be read as JSON ({error}); curate again") from error
    _check_description(folder, description)
    return description


def _check_description(folder: Path, description: Any) -> None:
    """The shape, version and fingerprint of `dataset.json`; shard names may not leave the folder."""
    path = folder / "dataset.json"
    version = description.get("version") if isinstance(description, dict) else None
    if version != VERSION:
        raise DataError(f"{path}: version is {version!r}, this program reads version {VERSION}; curate again")
    missing = {"fingerprint", "manifest_sha256", "shards", "counts", "card"} - set(description)
    if missing:
        raise DataError(f"{path}: has no {', '.join(sorted(missing))}; curate again")
    for shard in description["shards"]:
        if not SHARD_RULE.fullmatch(shard):
            raise DataError(f"{path}: {shard!r} is not a shard name such as train-00000.tar")
    expected = fingerprint_of(description["manifest_sha256"], description["shards"])
    if expected != description["fingerprint"]:
        raise DataError(
            f"{path}: fingerprint is {description['fingerprint']}, its hashes give {expected}; it was edited"
        )


def fingerprint_of(manifest_sha256: str, shards: dict[str, dict[str, Any]]) -> str:
    """One SHA-256 over the hashes of the manifest and of all shards: equal content, equal fingerprint."""
    hashes = {name: shard["sha256"] for name, shard in shards.items()}
    content = {"version": VERSION, "manifest_sha256": manifest_sha256, "shards": hashes}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, streamed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sample_values(sample: Sample) -> dict[str, Any]:
    """All of a sample but its frames, as the plain JSON values of its `KEY.json`."""
    return {
        "key": sample.key,
        "split": sample.split,
        "caption": sample.caption,
        "questions": [question.to_dict() for question in sample.questions],
        "pts": [float(time) for time in sample.pts],
        "source": sample.source,
        "twin": sample.twin,
        "licence": sample.licence,
        "lineage": sample.lineage,
    }


def sample_from(values: dict[str, Any], jpegs: tuple[bytes, ...]) -> Sample:
    """The sample whose `sample_values` and frames these are."""
    questions = tuple(Question.from_dict(question) for question in values["questions"])
    return Sample(**values | {"jpegs": jpegs, "questions": questions, "pts": tuple(values["pts"])})


def _members(region: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and content of each member of a piece of a tar file."""
    at = 0
    while at < len(region):
        # The two fields of a header that matter; the shard's hash has vouched for the rest.
        name, _, _ = region[at : at + 100].partition(b"\0")
        size = int(region[at + 124 : at + 135], 8)
        at += BLOCK
        yield name.decode(), region[at : at + size]
        at += -(-size // BLOCK) * BLOCK
