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
    """One file of scores, and the index of its first part: sorted keys, and where their lines begin.

    A process and its child may both have the own file open, and write to it in turn. Raises DataError for a line that
    is damaged.
    """

    def __init__(self, path: Path, version: str, own: bool) -> None:
        self.path, self._version = path, version
        self._index = Index.of(path, version, own)
        self._fresh: dict[Key, int] = {}
        self._end = self._index.end  # of what has been read
        self._read_on()
        self._appended = False
        self._writing: IO[bytes] | None = path.open("ab") if own else None
        self._catch_up()

    def _read_on(self) -> None:
        """Note where the whole lines stand that have not been read."""
        with self.path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):  # being written, or cut off by a kill
                    break
                identity, version = self._named(line)
                if version == self._version:
                    self._fresh[_key(identity)] = self._end
                self._end += len(line)
                if len(self._fresh) == MOST_FRESH:
                    self._write_index()

    def _named(self, line: bytes) -> tuple[str, str]:
        """The id and the version of a line."""
        try:
            row = json.loads(line.partition(b', "scores": ')[0] + b"}")
            return row["id"], row["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path}: the line at byte {self._end} is damaged ({error}); end the file there "
                f"(truncate -s {self._end}) and run again: what stood behind is made again"
            ) from error

    def _catch_up(self) -> None:
        """Read on where another process has written to the own file, and cut off what a kill has left of a line."""
        if self._writing is not None and os.fstat(self._writing.fileno()).st_size != self._end:
            self._read_on()
            os.truncate(self.path, self._end)

    def _write_index(self) -> None:
        self._index = self._index.merged(self._fresh, self._end)
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
        row = {"id": identity, "version": self._version, "scores": scores}
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        self._catch_up()
        self._writing.write(line)
        self._writing.flush()
        self._fresh[_key(identity)], self._appended = self._end, True
        self._end += len(line)
        if len(self._fresh) == MOST_FRESH:
            self._write_index()

    def close(self) -> None:
        """Close the file; its index then has all of it, where this process has added to it."""
        if self._writing is not None:
            self._catch_up()
            if self._appended and self._fresh:
                self._write_index()
            self._writing.close()


class Index:
    """Where the scores of one version stand in the first `end` bytes of a file: three columns of 8 bytes, mapped."""

    def __init__(self, scores: Path, version: str, end: int, columns: tuple[Column, Column, Column]) -> None:
        self.scores, self.version, self.end = scores, version, end
        self._high, self._low, self._starts = columns

    @staticmethod
    def of(scores: Path, version: str, own: bool = False) -> "Index":
        """The index of a file of scores; an empty one where it is missing, another version's, or of more bytes than
        there are. The last is removed where the file is the process's `own`: it would be believed when the file grows.
        """
        empty, path = np.zeros(0, np.uint64), index_path(scores)
        try:
            with path.open("rb") as file:
                head = json.loads(file.readline(1000))
                begun = file.tell()
            with scores.open("rb") as file:  # after the head was read: another part's file may be growing
                ahead = head["end"] > os.fstat(file.fileno()).st_size
            if ahead and own:
                path.unlink()
            if head["version"] == version and not ahead:
                return Index(scores, version, int(head["end"]), _columns(path, begun, int(head["count"])))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return Index(scores, version, 0, (empty, empty, empty))

    def find(self, key: Key) -> int | None:
        """Where the line of a key begins."""
        place = self._place(key)
        return int(self._starts[place]) if self._has(place, key) else None

    def _place(self, key: Key) -> int:
        """How many keys are smaller."""
        place = int(np.searchsorted(self._high, np.uint64(key[0])))
        while place < len(self._high) and (int(self._high[place]), int(self._low[place])) < key:
            place += 1
        return place

    def _has(self, place: int, key: Key) -> bool:
        return place < len(self._high) and (int(self._high[place]), int(self._low[place])) == key

    def merged(self, fresh: dict[Key, int], end: int) -> "Index":
        """With what was written since, of which the newer place counts, up to the byte `end`; written and mapped.

        In memory is one column at a time: 26 bytes a place.
        """
        keys = sorted(fresh)
        places = np.array([self._place(key) for key in keys], np.int64)
        again = np.array([self._has(place, key) for place, key in zip(places.tolist(), keys, strict=True)], np.bool_)
        added = np.array([(*key, fresh[key]) for key in keys], np.uint64).reshape(-1, 3)
        starts = np.array(self._starts)
        starts[places[again]] = added[again, 2]
        path = index_path(self.scores)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        count = len(starts) + int((~again).sum())
        with temporary.open("wb") as file:
            begun = file.write(_head(self.version, end, count))
            for number, column in enumerate((self._high, self._low, starts)):
                whole = np.insert(column, places[~again], added[~again, number])
                file.write(whole.astype("<u8", copy=False).data)
            file.flush()
            os.fsync(file.fileno())
        columns = _columns(temporary, begun, count)  # these, also where another process writes the index too
        temporary.replace(path)
        return Index(self.scores, self.version, end, columns)


def _columns(path: Path, begun: int, count: int) -> tuple[Column, Column, Column]:
    """Mapped from the byte `begun`: the halves of the keys, and the places."""
    shape = (3, count)
    columns = np.memmap(path, "<u8", "r", begun, shape) if count else np.zeros(shape, np.uint64)
    return columns[0], columns[1], columns[2]


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
