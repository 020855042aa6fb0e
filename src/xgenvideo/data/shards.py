"""Writing a dataset: deterministic tar shards, a manifest, and one rename that publishes all of it."""

import hashlib
import io
import json
import os
import secrets
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as parquet

from xgenvideo.data.dataset import (
    KEY_RULE,
    SPLIT_RULE,
    VERSION,
    Dataset,
    fingerprint_of,
    open_dataset,
    sample_values,
    sha256_of,
)
from xgenvideo.data.index import Index, IndexWriter, index_path, sync
from xgenvideo.data.keys import Keys
from xgenvideo.errors import DataError
from xgenvideo.records import Sample

# Reading lives in dataset.py; whoever works with shards finds both halves here.
__all__ = ["Dataset", "open_dataset", "publish_dataset", "sync", "write_dataset"]

SHARD_BYTES = 64 * 2**20
GROUP_ROWS = 1 << 14
READ_ROWS = 1 << 10
GROUP = "group.json"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("shard", pa.string()),
        ("index", pa.int64()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("frames", pa.int64()),
        ("seconds", pa.float64()),
        ("pts", pa.list_(pa.float64())),
        ("caption", pa.string()),
        ("questions", pa.string()),
        ("source", pa.string()),
        ("twin", pa.string()),
        ("licence", pa.string()),
        ("lineage", pa.string()),
    ]
)


def write_dataset(
    folder: Path, samples: Iterable[Sample], card: dict[str, Any], shard_bytes: int = SHARD_BYTES
) -> Dataset:
    """As `publish_dataset`, and open what was written."""
    publish_dataset(folder, samples, card, shard_bytes)
    return open_dataset(Path(folder).absolute())


def publish_dataset(
    folder: Path, samples: Iterable[Sample], card: dict[str, Any], shard_bytes: int = SHARD_BYTES
) -> str:
    """Write `samples` as shards of at most about `shard_bytes` each and publish them in one rename; the fingerprint.

    Of a sample 16 bytes stay in memory. The same samples give the same bytes. A killed write leaves only a folder named
    `FOLDER.tmp-*`. Raises DataError for no samples, an unsafe or repeated key, values that are not JSON, or a folder in
    use: an existing dataset is never overwritten, and is left as it is if it has the same fingerprint.
    """
    return publish(folder, lambda assembly: assembly.write(samples), card, shard_bytes)


def publish(
    folder: Path, fill: Callable[["Assembly"], None], card: dict[str, Any], shard_bytes: int = SHARD_BYTES
) -> str:
    """As `publish_dataset`, of what `fill` writes into the assembly or has it take over from other processes."""
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / "dataset.json").exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: is in use and is not a dataset; give a new or empty folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp-{secrets.token_hex(4)}")
    temporary.mkdir()
    try:
        with Assembly(temporary, shard_bytes) as assembly:
            fill(assembly)
        fingerprint = assembly.describe(card)
        _publish(temporary, folder, fingerprint)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return fingerprint


def write_group(folder: Path, samples: Iterable[Sample], shard_bytes: int = SHARD_BYTES) -> None:
    """Write a part of a dataset into a new folder, for an assembly of another process to take over."""
    folder.mkdir()
    with Assembly(folder, shard_bytes) as assembly:
        assembly.write(samples)
    (folder / GROUP).write_bytes(_to_json(assembly.shards, GROUP))


class Assembly:
    """A dataset being put together in a folder: shards, manifest and index. A context manager."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shards = folder, dict[str, dict[str, Any]]()
        self._shard_bytes = shard_bytes
        self._manifest, self._index = ManifestWriter(folder / "manifest.parquet"), IndexWriter(folder / "index")
        self._writers: dict[str, ShardWriter] = {}
        self._counts, self._numbers = Counter[str](), Counter[str]()
        self._keys = Keys()

    def __enter__(self) -> "Assembly":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._manifest.close()
        self._index.close()
        for writer in self._writers.values():
            writer.close()

    def __len__(self) -> int:
        return len(self._keys)

    def write(self, samples: Iterable[Sample]) -> None:
        """Append samples."""
        for sample in samples:
            check_names(sample)
            if sample.split not in self._writers:
                self._writers[sample.split] = ShardWriter(self.folder, sample.split, self._shard_bytes, self.shards)
            self._note(self._writers[sample.split].write(sample))

    def take(self, group: Path) -> None:
        """Append what `write_group` wrote below this folder: its shards get the next numbers, its folder goes."""
        found = json.loads((group / GROUP).read_bytes())
        names = {name: self._next_name(name.rpartition("-")[0]) for name in sorted(found, key=_place_of)}
        for name, ours in names.items():
            os.rename(group / name, self.folder / ours)
            self.shards[ours] = found[name]
        with parquet.ParquetFile(group / "manifest.parquet") as manifest:
            for some in manifest.iter_batches(READ_ROWS):
                for row in some.to_pylist():
                    self._note(row | {"shard": names[row["shard"]]})
        shutil.rmtree(group)

    def _next_name(self, split: str) -> str:
        number = self._numbers[split]
        self._numbers[split] += 1
        return shard_name(split, number)

    def _note(self, row: dict[str, Any]) -> None:
        self._manifest.write(row)
        self._index.write(row)
        self._counts[row["split"]] += 1
        self._keys.add(row["key"])

    def describe(self, card: dict[str, Any]) -> str:
        """Write dataset.json, when all is closed; everything is synced to disk. Returns the fingerprint."""
        if not len(self._keys):
            name = self.folder.name.partition(".tmp-")[0]
            raise DataError(f"{name}: there is no sample to write; every pair was dropped or none came in")
        manifest_sha256 = sha256_of(self._manifest.path)
        os.rename(self._index.path, index_path(self.folder, manifest_sha256))
        self._check_keys(manifest_sha256)
        description = {
            "version": VERSION,
            "fingerprint": fingerprint_of(manifest_sha256, self.shards),
            "manifest_sha256": manifest_sha256,
            "counts": dict(sorted(self._counts.items())),
            "shards": dict(sorted(self.shards.items())),
            "card": card,
        }
        (self.folder / "dataset.json").write_bytes(_to_json(description, "card"))
        for path in (self._manifest.path, self.folder / "dataset.json", self.folder):
            sync(path)
        return str(description["fingerprint"])

    def _check_keys(self, manifest_sha256: str) -> None:
        for place in sorted(self._keys.repeated())[:1]:
            key = Index(index_path(self.folder, manifest_sha256), dict(self._counts)).row(place)["key"]
            raise DataError(f"key {key!r}: two samples have it; keys must be unique over all splits")


def shard_name(split: str, number: int) -> str:
    """The file name of a shard."""
    return f"{split}-{number:05d}.tar"


def _place_of(name: str) -> tuple[str, int]:
    """Split and number of a shard by its name."""
    split, _, number = name.removesuffix(".tar").rpartition("-")
    return split, int(number)


def check_names(sample: Sample) -> None:
    """Refuse a key or split that is no safe member or file name."""
    if not KEY_RULE.fullmatch(sample.key):
        raise DataError(
            f"key {sample.key!r}: a key is 1 to 80 letters, digits, '-' and '_' (it names members of a tar); rename it"
        )
    if not SPLIT_RULE.fullmatch(sample.split):
        raise DataError(
            f"sample {sample.key}: split {sample.split!r} must be 1 to 32 of a-z, 0-9 and '_', such as train"
        )


class ManifestWriter:
    """The manifest, a group of rows at a time: a million rows take gigabytes as Python's objects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = parquet.ParquetWriter(path, SCHEMA)
        self._rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self._rows.append(row)
        if len(self._rows) == GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._rows.clear()

    def close(self) -> None:
        """End the file."""
        if self._rows:
            self._flush()
        self._writer.close()


class ShardWriter:
    """The shards of one split, one open at a time. Finished ones are entered in `shards` (name -> sha256, samples)."""

    def __init__(self, folder: Path, split: str, shard_bytes: int, shards: dict[str, dict[str, Any]]) -> None:
        self.folder, self.split, self.shard_bytes, self.shards = folder, split, shard_bytes, shards
        self.samples = 0
        self._count = 0
        self._number = -1
        self._file: HashedFile | None = None

    def write(self, sample: Sample) -> dict[str, Any]:
        """Append one sample; returns its manifest row."""
        values = sample_values(sample)
        region = _region(sample, _to_json(values, f"sample {sample.key}"))
        if self._file is not None and self._file.bytes + len(region) > self.shard_bytes:
            self.close()
        if self._file is None:
            self._number, self._count = self._number + 1, 0
            self._file = HashedFile(self.folder / self._name)
        row = values | {
            "shard": self._name,
            "index": self._count,
            "offset": self._file.bytes,
            "bytes": len(region),
            "frames": len(sample.jpegs),
            "seconds": float(sample.pts[-1] - sample.pts[0]),
            "questions": json.dumps(values["questions"]),
            "lineage": json.dumps(values["lineage"]),
        }
        self._file.write(region)
        self._count, self.samples = self._count + 1, self.samples + 1
        return row

    @property
    def _name(self) -> str:
        return shard_name(self.split, self._number)

    def close(self) -> None:
        """End the open shard, if there is one, and sync it to disk."""
        if self._file is None:
            return
        self._file.write(bytes(-self._file.bytes % tarfile.RECORDSIZE or tarfile.RECORDSIZE))
        self.shards[self._name] = {"sha256": self._file.close(), "samples": self._count, "bytes": self._file.bytes}
        self._file = None


class HashedFile:
    """A file being written whose SHA-256 is taken from memory before the write, so that a bad disk shows."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed in `close`)
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, content: bytes) -> None:
        """Append."""
        self._digest.update(content)
        self._file.write(content)
        self.bytes += len(content)

    def close(self) -> str:
        """Sync to disk and close; returns the SHA-256 of all that was written."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._digest.hexdigest()


def _region(sample: Sample, text: bytes) -> bytes:
    """The tar members of one sample, `KEY.json` first, without an end-of-archive mark."""
    members = {f"{sample.key}.json": text}
    members |= {f"{sample.key}.{number:03d}.jpg": jpeg for number, jpeg in enumerate(sample.jpegs)}
    region = io.BytesIO()
    for name, content in members.items():
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(content), 0, 0o644
        region.write(info.tobuf(tarfile.USTAR_FORMAT))
        region.write(content)
        region.write(bytes(-len(content) % tarfile.BLOCKSIZE))
    return region.getvalue()


def _to_json(values: dict[str, Any], name: str) -> bytes:
    """Deterministic UTF-8 JSON. Raises DataError for what JSON or UTF-8 cannot hold (a lone surrogate, for one)."""
    try:
        return json.dumps(values, sort_keys=True, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: must be plain JSON values in UTF-8, without NaN ({error})") from error


def _publish(temporary: Path, folder: Path, fingerprint: str) -> None:
    """Rename into place; an existing dataset stays, and must be the same one."""
    if not (folder / "dataset.json").exists():
        try:
            os.rename(temporary, folder)
            sync(folder.parent)
            return
        except OSError as error:
            # Another writer may have published between the check and the rename.
            if not (folder / "dataset.json").exists():
                raise DataError(f"{folder}: cannot be published ({error})") from error
    existing = open_dataset(folder).fingerprint
    if existing != fingerprint:
        raise DataError(
            f"{folder}: holds another dataset (fingerprint {existing[:12]}, the new one is {fingerprint[:12]}); "
            "datasets are never overwritten: give a new folder, or remove this one first"
        )
