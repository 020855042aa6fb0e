"""Scores on disk, a line each as they are made, so that a killed run goes on where it was.

Only where each score stands is held in memory. Parts of a curation write a file each and read all of them.
"""

import json
from pathlib import Path
from typing import IO, Any

ID_DIGITS = 32  # of a SHA-256, held for each score


class ScoreStore:
    """Scores of one step under one version of it: append-only JSON lines {"id", "version", "scores"}.

    An id is a SHA-256 in hexadecimal. `part` ends the name of the file that is written to.
    """

    def __init__(self, folder: Path, step: str, version: str, part: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.version = version
        own = folder / f"{step}{part}.jsonl"
        others = [path for path in (folder / f"{step}.jsonl", *sorted(folder.glob(f"{step}-*.jsonl"))) if path != own]
        self._paths = [own, *(path for path in others if path.exists())]
        self._places: dict[bytes, tuple[int, int]] = {}  # of an id: which file, and where its line begins
        for number in reversed(range(len(self._paths))):  # the own file last: its word counts
            end = self._load(number)
        if own.exists() and end < own.stat().st_size:  # a kill in the middle of a line
            with own.open("r+b") as file:
                file.truncate(end)
        self._file: IO[bytes] = own.open("ab")
        self._reading: tuple[int, IO[bytes]] = (0, own.open("rb"))

    def _load(self, number: int) -> int:
        """Note where a file's scores stand; returns the end of its last whole line."""
        end = 0
        if not self._paths[number].exists():
            return end
        with self._paths[number].open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):  # being written, or cut off by a kill
                    break
                row = json.loads(line.partition(b', "scores": ')[0] + b"}")
                if row["version"] == self.version:
                    self._places[_short(row["id"])] = (number, end)
                end += len(line)
        return end

    def __contains__(self, identity: str) -> bool:
        return _short(identity) in self._places

    def __getitem__(self, identity: str) -> dict[str, Any]:
        number, start = self._places[_short(identity)]
        if self._reading[0] != number:
            self._reading[1].close()
            self._reading = (number, self._paths[number].open("rb"))
        self._reading[1].seek(start)
        scores: dict[str, Any] = json.loads(self._reading[1].readline())["scores"]
        return scores

    def put(self, identity: str, scores: dict[str, Any]) -> None:
        """Keep and write the scores of one input."""
        row = {"id": identity, "version": self.version, "scores": scores}
        start = self._file.tell()
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()
        self._places[_short(identity)] = (0, start)

    def forget(self, identity: str) -> None:
        """Make the scores of one input again, because a file that belongs to them is gone."""
        self._places.pop(_short(identity), None)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._reading[1].close()


def _short(identity: str) -> bytes:
    return bytes.fromhex(identity[:ID_DIGITS])
