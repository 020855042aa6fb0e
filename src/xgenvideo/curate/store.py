"""Scores on disk, a line each as they are made, so that a killed run goes on where it was.

Where each score stands is an index beside the file, mapped from disk; only of what was written since is a place held in
memory. Parts of a curation write a file each and read all of them.
"""

import json
import os
import secrets
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from xgenvideo.errors import DataError

ID_DIGITS = 32  # of a SHA-256, by which a score is found
MOST_FRESH = 20_000  # places held in memory, before they go to the index

Key = tuple[int, int]  # 128 bits
Column = NDArray[np.uint64]


class ScoreStore:
    """Scores of one step under one version of it: append-only JSON lines {"id", "version", "scores"}.

    An id is a SHA-256 in hexadecimal. `part` ends the name of the file that is written to.
    """

    def __init__(self, folder: Path, step: str, version: str, part: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.version = version
        own = folder / f"{step}{part}.jsonl"
        others = [path for path in (folder / f"{step}.jsonl", *sorted(folder.glob(f"{step}-*.jsonl"))) if path != own]
        own.touch()
        # The own file first: its word counts.
        self._files = [ScoreFile(path, version, path == own) for path in (own, *others) if path.exists()]
        self._forgotten: set[Key] = set()
        self._reading = (self._files[0], own.open("rb"))  # one at a time: of hundreds of parts there are too many

    def _find(self, identity: str) -> tuple["ScoreFile", int] | None:
        key = _key(identity)
        if key in self._forgotten:
            return None
        found = ((file, file.find(key)) for file in self._files)
        return next(((file, start) for file, start in found if start is not None), None)

    def __contains__(self, identity: str) -> bool:
        return self._find(identity) is not None

    def __getitem__(self, identity: str) -> dict[str, Any]:
        found = self._find(identity)
        if found is None:
            raise KeyError(identity)
        file, start = found
        if self._reading[0] is not file:
            self._reading[1].close()
            self._reading = (file, file.path.open("rb"))
        return file.read(self._reading[1], identity, start)

    def put(self, identity: str, scores: dict[str, Any]) -> None:
        """Keep and write the scores of one input."""
        self._files[0].append(identity, scores)
        self._forgotten.discard(_key(identity))

    def forget(self, identity: str) -> None:
        """Make the scores of one input again, because a file that belongs to them is gone."""
        self._forgotten.add(_key(identity))

    def close(self) -> None:
        """Close the files, and bring the own one's index up to date."""
        self._reading[1].close()
        self._files[0].close()


class ScoreFile:
    """One file of scores, and the index of its first part: sorted keys, and where their lines begin."""

    def __init__(self, path: Path, version: str, own: bool) -> None:
        self.path, self._version = path, version
        self._index = Index.of(index_path(path), version, path.stat().st_size)
        self._fresh: dict[Key, int] = {}
        end = self._read_on(own)
        if own and end < path.stat().st_size:  # a kill in the middle of a line
            os.truncate(path, end)
        self._appended = False
        self._writing: IO[bytes] | None = path.open("ab") if own else None

    def _read_on(self, own: bool) -> int:
        """Note where the scores stand that the index does not have; returns the end of the last whole line."""
        end = self._index.end
        with self.path.open("rb") as file:
            file.seek(end)
            for line in file:
                if not line.endswith(b"\n"):  # being written, or cut off by a kill
                    break
                row = json.loads(line.partition(b', "scores": ')[0] + b"}")
                if row["version"] == self._version:
                    self._fresh[_key(row["id"])] = end
                end += len(line)
                if own and len(self._fresh) == MOST_FRESH:
                    self._write_index(end)
        return end

    def _write_index(self, end: int) -> None:
        self._index = self._index.merged(self._fresh, end)
        self._fresh.clear()

    def find(self, key: Key) -> int | None:
        """Where the line of a key begins."""
        start = self._fresh.get(key)
        return self._index.find(key) if start is None else start

    def read(self, file: IO[bytes], identity: str, start: int) -> dict[str, Any]:
        """The scores of the line that begins there. Raises DataError where it is another's."""
        file.seek(start)
        try:
            row = json.loads(file.readline())
            scores: dict[str, Any] = row["scores"]
            right = row["id"] == identity
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            index = index_path(self.path)
            raise DataError(f"{self.path}: was changed since {index.name} was written; remove {index} and run again")
        return scores

    def append(self, identity: str, scores: dict[str, Any]) -> None:
        """Write one line, at once."""
        assert self._writing is not None, f"{self.path} is another part's"
        start = self._writing.tell()
        row = {"id": identity, "version": self._version, "scores": scores}
        self._writing.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._writing.flush()
        self._fresh[_key(identity)], self._appended = start, True
        if len(self._fresh) == MOST_FRESH:
            self._write_index(self._writing.tell())

    def close(self) -> None:
        """Close the file; its index then has all of it, where this process has added to it."""
        if self._writing is not None:
            if self._appended and self._fresh:
                self._write_index(self._writing.tell())
            self._writing.close()


class Index:
    """Where the scores of one version stand in the first `end` bytes of a file: three columns of 8 bytes, mapped."""

    def __init__(self, path: Path, version: str, end: int, columns: tuple[Column, Column, Column]) -> None:
        self.path, self.version, self.end = path, version, end
        self._high, self._low, self._starts = columns

    @staticmethod
    def of(path: Path, version: str, most: int) -> "Index":
        """What the file says; nothing where it is missing, another version's, or longer than the `most` bytes of what
        it is of.
        """
        empty = np.zeros(0, np.uint64)
        try:
            with path.open("rb") as file:
                head = json.loads(file.readline(1000))
                begun = file.tell()
            if head["version"] == version and head["end"] <= most:
                shape = (3, int(head["count"]))
                columns = np.memmap(path, "<u8", "r", begun, shape) if shape[1] else np.zeros(shape, np.uint64)
                return Index(path, version, int(head["end"]), (columns[0], columns[1], columns[2]))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return Index(path, version, 0, (empty, empty, empty))

    def find(self, key: Key) -> int | None:
        """Where the line of a key begins."""
        place = int(np.searchsorted(self._high, np.uint64(key[0])))
        while place < len(self._high) and int(self._high[place]) == key[0]:
            if int(self._low[place]) == key[1]:
                return int(self._starts[place])
            place += 1
        return None

    def merged(self, fresh: dict[Key, int], end: int) -> "Index":
        """With what was written since, of which the newer place counts, up to the byte `end`; written and mapped."""
        keys = np.array(list(fresh), np.uint64).reshape(-1, 2)
        added = (keys[:, 0], keys[:, 1], np.array(list(fresh.values()), np.uint64))
        old = (self._high, self._low, self._starts)
        high, low, starts = (np.concatenate([new, before]) for new, before in zip(added, old, strict=True))
        order = np.lexsort((low, high))  # stable: the newer of equal keys comes first
        high, low, starts = high[order], low[order], starts[order]
        first = np.ones(len(high), np.bool_)
        first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
        columns = np.stack([high[first], low[first], starts[first]])
        temporary = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.part")
        with temporary.open("wb") as file:
            file.write(_head(self.version, end, columns.shape[1]))
            file.write(columns.astype("<u8").tobytes())
        temporary.replace(self.path)
        return Index.of(self.path, self.version, end)


def _head(version: str, end: int, count: int) -> bytes:
    """A line of a length that leaves the columns at a multiple of 8 bytes."""
    head = json.dumps({"version": version, "end": end, "count": count}).encode()
    return head + b" " * (-(len(head) + 1) % 8) + b"\n"


def index_path(path: Path) -> Path:
    """Where the index of a file of scores lies: whoever writes such a file anew has to remove it."""
    return path.with_suffix(".index")


def _key(identity: str) -> Key:
    digits = identity[:ID_DIGITS]
    return int(digits[: ID_DIGITS // 2], 16), int(digits[ID_DIGITS // 2 :], 16)
