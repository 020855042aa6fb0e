"""Scores on disk, a line each as they are made, so that a killed run goes on where it was."""

import json
from pathlib import Path
from typing import IO, Any


class ScoreStore:
    """Scores of one step under one version of it: append-only JSON lines {"id", "version", "scores"}."""

    def __init__(self, folder: Path, step: str, version: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.version = version
        self._path = folder / f"{step}.jsonl"
        self._scores: dict[str, dict[str, Any]] = {}
        self._load()
        self._file: IO[str] = self._path.open("a", encoding="utf-8")

    def _load(self) -> None:
        if not self._path.exists():
            return
        content = self._path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):  # a kill in the middle of a line
            with self._path.open("r+b") as file:
                file.truncate(end)
        for line in content[:end].splitlines():
            row = json.loads(line)
            if row["version"] == self.version:
                self._scores[row["id"]] = row["scores"]

    def __contains__(self, identity: str) -> bool:
        return identity in self._scores

    def __getitem__(self, identity: str) -> dict[str, Any]:
        return self._scores[identity]

    def put(self, identity: str, scores: dict[str, Any]) -> None:
        """Keep and write the scores of one input."""
        row = json.loads(json.dumps({"id": identity, "version": self.version, "scores": scores}, allow_nan=False))
        self._scores[identity] = row["scores"]
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def forget(self, identity: str) -> None:
        """Make the scores of one input again, because a file that belongs to them is gone."""
        self._scores.pop(identity, None)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
