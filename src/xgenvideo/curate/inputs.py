"""All inputs of a curation in their order, on disk: a slice of them at a time is in memory, however many there are.

A slice is a file of JSON lines. It is also the unit of work (`units.py`), and the part of a listing that a machine of
many works on.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from xgenvideo.curate.pairs import Entry
from xgenvideo.curate.settings import Decision
from xgenvideo.errors import ConfigError
from xgenvideo.records import Pair, Question

MEASURED = frozenset({"motion", "picture", "text", "marks", "colours"})  # facts that a step judges and reports itself
SKETCHED = "sketch"  # a fact that near duplicates are found by, and that goes with their decision
NOTHING: Mapping[str, Any] = MappingProxyType({})
_ENTRY, _PAIR = (tuple(each.name for each in fields(kind)) for kind in (Entry, Pair))
Value = TypeVar("Value")


@dataclass(slots=True)
class Item:
    """One input on its way: what was read, what was decoded, and every decision so far."""

    number: int
    entry: Entry
    content: str | None = None
    facts: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    decisions: list[Decision] = field(default_factory=list)
    split: str | None = None

    def __post_init__(self) -> None:
        if self.entry.reason is not None and not self.decisions:
            self.decisions.append(Decision(self.entry.step, self.entry.reason, self.entry.scores, self.entry.detail))

    @property
    def pair(self) -> Pair:
        """The record of an input that was readable."""
        assert self.entry.pair is not None, f"{self.entry.name} has no record"
        return self.entry.pair

    @property
    def kept(self) -> bool:
        """Whether no step has dropped it."""
        return self.drop is None

    @property
    def drop(self) -> Decision | None:
        """The decision that dropped it."""
        return next((decision for decision in self.decisions if not decision.keep), None)

    @property
    def reason(self) -> str | None:
        """The reason code it was dropped with."""
        return drop.reason if (drop := self.drop) else None

    @property
    def lost_at(self) -> str | None:
        """The step that dropped it."""
        return drop.step if (drop := self.drop) else None

    @property
    def failed(self) -> bool:
        """Whether it could not be read or decoded, as opposed to judged."""
        crashed = self.reason is not None and self.reason.startswith("crashed_")
        return (
            crashed or self.lost_at in ("read", "download") or (self.lost_at == "decode" and self.reason != "too_short")
        )

    def forget_measures(self) -> None:
        """Let go of the facts that every step has judged: they are in the store, and large."""
        self.facts = {name: value for name, value in self.facts.items() if name not in MEASURED}

    def lineage(self) -> dict[str, Any]:
        """Where the sample is from, every score and every decision."""
        return {
            "video": self.pair.video,
            "content": self.content,
            "start": self.entry.start,
            "end": self.entry.end if self.entry.end is not None else self.facts.get("seconds"),
            "published": self.entry.scores,
            "facts": {name: value for name, value in self.facts.items() if name not in MEASURED and name != SKETCHED},
            "decisions": [decision.to_dict() for decision in self.decisions],
        }

    def to_dict(self) -> dict[str, Any]:
        """A line of audit.jsonl."""
        pair, drop = self.entry.pair, self.drop
        status = "kept" if drop is None else "failed" if self.failed else "dropped"
        record = {"number": self.number, "name": self.entry.name, "key": pair.key if pair else self.entry.name}
        record |= {"status": status, "step": self.lost_at, "reason": self.reason, "detail": drop.detail if drop else ""}
        if pair is None:
            return record
        return record | {"caption": pair.caption, "source": pair.source} | self.lineage()

    def to_row(self) -> list[Any]:
        """Plain JSON values, from which `from_row` makes it again; its number is its place."""
        decisions = [[decision.step, decision.reason, decision.scores, decision.detail] for decision in self.decisions]
        return [entry_row(self.entry), self.content, dict(self.facts), decisions, self.split]

    @staticmethod
    def from_row(number: int, row: list[Any]) -> "Item":
        """Read what `to_row` wrote."""
        entry, content, facts, decisions, split = row
        return Item(number, entry_from(entry), content, facts, [Decision(*values) for values in decisions], split)


def entry_row(entry: Entry) -> list[Any]:
    """Plain JSON values of an input as it was read, from which `entry_from` makes it again."""
    row = [getattr(entry, name) for name in _ENTRY]
    if entry.pair is not None:
        pair = [getattr(entry.pair, name) for name in _PAIR]
        pair[_PAIR.index("questions")] = [question.to_dict() for question in entry.pair.questions]
        row[_ENTRY.index("pair")] = pair
    if entry.path is not None:
        row[_ENTRY.index("path")] = str(entry.path)
    return row


def entry_from(row: list[Any]) -> Entry:
    """Read what `entry_row` wrote."""
    values = dict(zip(_ENTRY, row, strict=True))
    if values["pair"] is not None:
        pair = dict(zip(_PAIR, values["pair"], strict=True))
        values["pair"] = Pair(**(pair | {"questions": tuple(map(Question.from_dict, pair["questions"]))}))
    if values["path"] is not None:
        values["path"] = Path(values["path"])
    return Entry(**values)


@dataclass(frozen=True)
class Part:
    """Which slices a process works on: those whose number leaves `number` when divided by `count`."""

    number: int = 0
    count: int = 1

    @staticmethod
    def parse(text: str) -> "Part":
        """Read "3/64": the fourth of 64, as Slurm numbers the tasks of an array. Raises ConfigError."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        if found is None or not int(found[1]) < int(found[2]):
            why = "is no part; write NUMBER/COUNT, numbers from 0 to COUNT - 1"
            raise ConfigError("--part", text, why, ("0/4", "1/4", "2/4", "3/4"))
        return Part(int(found[1]), int(found[2]))

    def __contains__(self, slice_number: int) -> bool:
        return slice_number % self.count == self.number

    @property
    def suffix(self) -> str:
        """How the names of the files end that only this part writes to."""
        return f"-{self.number}-of-{self.count}" if self.count > 1 else ""


WHOLE = Part()


class Inputs:
    """The inputs of a part, or of the whole, in a folder of their own: `size` of them in a file.

    Can be gone through as often as is asked. `len` counts the inputs of all parts.
    """

    def __init__(self, folder: Path, part: Part, counts: list[int]) -> None:
        self.folder, self._part, self._counts = folder, part, counts

    @staticmethod
    def write(folder: Path, entries: Iterable[Entry], size: int, part: Part = WHOLE) -> "Inputs":
        """Read all entries, and write those of the part, in place of what was in the folder."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        inputs, begun = Inputs(folder, part, []), 0
        for number, some in enumerate(batches(entries, size)):
            inputs._counts.append(len(some))
            if number in part:
                inputs._save(number, [Item(begun + place, entry) for place, entry in enumerate(some)])
            begun += len(some)
        return inputs

    def __len__(self) -> int:
        return sum(self._counts)

    def __iter__(self) -> Iterator[Item]:
        for some in self.slices():
            yield from some

    def slices(self) -> Iterator[list[Item]]:
        """The part's inputs, a slice at a time. What is done to them is not kept."""
        for number, begun in self._begins():
            yield read_slice(self._path(number), begun)

    def change(self) -> Iterator[list[Item]]:
        """As `slices`; each is written back, as the caller leaves it, when the next is asked for. It may get longer."""
        for number, begun in self._begins():
            some = read_slice(self._path(number), begun)
            yield some
            self._counts[number] = len(some)
            self._save(number, some)

    def _begins(self) -> Iterator[tuple[int, int]]:
        """The number of each of the part's slices, and of its first input."""
        begun = 0
        for number in range(len(self._counts)):
            if number in self._part:
                yield number, begun
            begun += self._counts[number]

    @property
    def paths(self) -> list[Path]:
        """The files of the part's slices, in order."""
        return [self._path(number) for number, _ in self._begins()]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.jsonl"

    def _save(self, number: int, items: Iterable[Item]) -> None:
        with self._path(number).open("w", encoding="ascii") as file:
            file.writelines(json.dumps(item.to_row()) + "\n" for item in items)


def read_slice(path: Path, begun: int = 0) -> list[Item]:
    """The inputs of one file; the first has the number `begun`."""
    with path.open(encoding="ascii") as file:
        return [Item.from_row(begun + place, json.loads(line)) for place, line in enumerate(file)]


def batches(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """The values in lists of `size`; the last may be shorter."""
    iterator = iter(values)
    while some := list(islice(iterator, size)):
        yield some


class Description:
    """A running SHA-256 of entries: their records, and the sizes and times of their files."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, entry: Entry) -> None:
        """One more."""
        values = (entry.name, entry.pair, entry.reason, entry.start, entry.end, entry.scores)
        self._digest.update(repr(values).encode("utf-8", "backslashreplace"))
        if entry.path is not None and entry.path.is_file():
            status = entry.path.stat()
            self._digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())

    @property
    def sha256(self) -> str:
        """Of what has been added so far."""
        return self._digest.hexdigest()


def describe(items: Sequence[Item]) -> str:
    """SHA-256 of the items' entries."""
    description = Description()
    for item in items:
        description.add(item.entry)
    return description.sha256
