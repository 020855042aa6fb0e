"""Curation's work, cut into units: a supervised child process works on each, and a ledger keeps what is finished.

A unit is a slice of the input in its order, without what its records have dropped. When the child dies on it (a crash
in a model's native code, its memory limit, silence), the unit is halved until the input that kills is alone; that one
is dropped as `crashed_STEP`, and the rest goes on. What a dead child had stored is not made again.
"""

import hashlib
import json
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgenvideo import errors
from xgenvideo.curate.inputs import Inputs, Item, batches, describe, entry_from, entry_row
from xgenvideo.curate.pairs import Entry
from xgenvideo.curate.settings import CurateSettings, Decision
from xgenvideo.curate.splitting import split_shots
from xgenvideo.curate.stages import VERSIONS, Seconds, Workplace, add_up
from xgenvideo.curate.steps import OF_RECORDS, judge
from xgenvideo.data.confined import start_child
from xgenvideo.errors import DataError, XGenVideoError

MOST_CRASHED, MOST_CRASHED_SHARE = 20, 0.01  # of the inputs; with more a step is broken, not its input


@dataclass(frozen=True)
class Job:
    """What a child is told: where scores are stored, by which settings, and the unit's inputs."""

    folder: Path
    settings: CurateSettings
    entries: tuple[Entry, ...]
    parent: int  # its process: the child does not outlive it
    part: str = ""  # how the names of the files end that scores are stored in

    def to_json(self) -> str:
        """One JSON object, which `from_json` reads in the child."""
        said = {
            "folder": str(self.folder),
            "settings": self.settings.to_dict(),
            "parent": self.parent,
            "part": self.part,
        }
        return json.dumps(said | {"entries": [entry_row(entry) for entry in self.entries]})

    @staticmethod
    def from_json(text: str | bytes) -> "Job":
        """Read what `to_json` wrote."""
        said = json.loads(text)
        settings = said["settings"] | {"steps": tuple(said["settings"]["steps"])}
        entries = tuple(entry_from(row) for row in said["entries"])
        return Job(Path(said["folder"]), CurateSettings(**settings), entries, said["parent"], said["part"])


class _DiedError(Exception):
    """A child has died in `step`."""

    def __init__(self, step: str, detail: str) -> None:
        super().__init__(step, detail)
        self.step, self.detail = step, detail


@dataclass(frozen=True)
class Worked:
    """What was worked on: `units`, their `pairs`, and those of them that `crashed` or could not be decoded."""

    units: int
    pairs: int
    crashed: int


def run_units(inputs: Inputs, work: Workplace) -> Worked:
    """Split and judge the inputs by their records, and make the scores of those left in child processes, a unit after
    another; inputs that crash one get their decision.

    `work.seconds` grows by the steps' time. Finished units are read from the ledger, a file each in `units/` of the
    work folder. Raises what a step raises for a wrong setting, and DataError when so many inputs crash that a step
    must be broken.
    """
    ledger, units, pairs, failed, crashed = Ledger(work), 0, 0, 0, 0
    for some in inputs.change():
        if work.settings.split_shots:
            with work.timed("shots"):
                some[:] = split_shots(some, work)
        judge(some, work, OF_RECORDS)
        for unit in batches((item for item in some if item.kept), work.settings.unit_pairs):
            crashed += _run_unit(unit, work, ledger)
            if crashed > max(MOST_CRASHED, MOST_CRASHED_SHARE * (pairs + len(unit))):
                last = next(item for item in reversed(unit) if _crashed(item.reason))
                raise DataError(
                    f"{crashed} of {pairs + len(unit)} inputs have crashed curation, the last the step {last.lost_at} "
                    f"({last.drop and last.drop.detail}): the step itself fails; repair or leave it away and run again"
                )
            units, pairs, failed = units + 1, pairs + len(unit), failed + sum(item.failed for item in unit)
    return Worked(units, pairs, failed)


def _run_unit(unit: list[Item], work: Workplace, ledger: "Ledger") -> int:
    """Give the items of one unit their outcomes; how many have crashed."""
    record = ledger.read(unit)
    if record is None:
        seconds: Seconds = defaultdict(float)
        record = {"outcomes": list(_work_on(unit, work, seconds)), "seconds": seconds}
        ledger.write(unit, record)
    add_up(work.seconds, record["seconds"])
    for item, outcome in zip(unit, record["outcomes"], strict=True):
        _apply(item, outcome)
    return sum(_crashed(outcome["reason"]) for outcome in record["outcomes"])


def _crashed(reason: str | None) -> bool:
    return str(reason).startswith("crashed_")


def _apply(item: Item, outcome: dict[str, Any]) -> None:
    item.content = outcome["content"]
    if "step" in outcome:
        item.decisions.append(Decision(outcome["step"], outcome["reason"], detail=outcome["detail"]))


def _work_on(unit: list[Item], work: Workplace, seconds: Seconds) -> Iterator[dict[str, Any]]:
    """Outcomes of the items in order, whatever they do to the child. Processor time by step is added to `seconds`."""
    try:
        yield from _in_child(unit, work, seconds)
    except _DiedError as died:
        if len(unit) > 1:
            middle = len(unit) // 2
            yield from _work_on(unit[:middle], work, seconds)
            yield from _work_on(unit[middle:], work, seconds)
        else:
            reason = f"crashed_{died.step}"
            yield {"content": None, "reason": reason, "step": died.step, "detail": died.detail}


def _in_child(unit: list[Item], work: Workplace, seconds: Seconds) -> list[dict[str, Any]]:
    """Outcomes of a child that lived to its end. Raises _DiedError."""
    settings = work.settings
    job = Job(work.folder, settings, tuple(item.entry for item in unit), os.getpid(), work.part)
    step, answer = "start", None
    spent: dict[str, float] = {}
    with closing(_Child(settings.unit_memory_mb)) as child:
        for answer in child.ask(job):
            step, spent = answer.get("step", step), answer.get("seconds", spent)
            if "progress" in answer:
                work.report(*answer["progress"])
    add_up(seconds, spent)  # also of one that died: finished steps are not done again
    if answer is not None and "outcomes" in answer:
        outcomes: list[dict[str, Any]] = answer["outcomes"]
        return outcomes
    if answer is not None and "error" in answer:
        raise as_error(answer)
    if step == "start":
        raise DataError(f"a process that curates could not start ({child.end}); curate.unit_memory_mb may be too small")
    raise _DiedError(step, answer["crash"] if answer is not None and "crash" in answer else child.end)


class _Child:
    """One `unit_child.py`, for one unit."""

    def __init__(self, memory_mb: int) -> None:
        self._process = start_child("xgenvideo.curate.unit_child", memory_mb)
        self.end = "it did not answer"

    def ask(self, job: Job) -> Iterator[dict[str, Any]]:
        """Everything it says, to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # it is dead: its output ends
            self._process.stdin.write(job.to_json().encode())
            self._process.stdin.close()
        for line in self._process.stdout:
            if line.endswith(b"\n"):
                yield json.loads(line)
        self.end = _told(self._process.wait())

    def close(self) -> None:
        """End it, if it lives."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def _told(code: int) -> str:
    if code == -signal.SIGALRM:
        return "it said nothing for curate.unit_seconds"
    return f"the process ended with code {code}"


def as_error(answer: dict[str, Any]) -> XGenVideoError:
    """The error that a step raised in the child."""
    kind = getattr(errors, answer["error"])
    error: XGenVideoError = kind.__new__(kind, answer["message"])
    vars(error).update(answer["values"])
    return error


class Ledger:
    """Finished units: (hash of the input, version of the steps) to (hash of the outcomes, counts by reason)."""

    def __init__(self, work: Workplace) -> None:
        self._folder = work.folder / "units"
        self._folder.mkdir(exist_ok=True)
        said = [work.settings.signature(), VERSIONS, [store.version for store in work.of_clips]]
        self._version = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def _path(self, given: str) -> Path:
        return self._folder / f"{hashlib.sha256(f'{given} {self._version}'.encode()).hexdigest()[:32]}.json"

    def read(self, unit: Sequence[Item]) -> dict[str, Any] | None:
        """A finished unit: `outcomes` in order, processor `seconds` by step. None for one that is not finished, or
        whose file is damaged.
        """
        given = describe(unit)
        try:
            record: dict[str, Any] = json.loads(self._path(given).read_bytes())
            output = _hash(record["outcomes"], record["seconds"])
            whole = (record["input"], record["version"], record["output"]) == (given, self._version, output)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if whole and len(record["outcomes"]) == len(unit) else None

    def write(self, unit: Sequence[Item], worked: dict[str, Any]) -> None:
        """Record a finished unit, in one rename. One with a decoder's crash, a silent host or a time-out is not: it is
        tried again.
        """
        outcomes, seconds = worked["outcomes"], worked["seconds"]
        again = [outcome for outcome in outcomes if outcome.get("step") in ("download", "decode")]
        if not all(outcome["reason"].startswith("crashed_") for outcome in again):
            return
        given = describe(unit)
        reasons = Counter(str(outcome["reason"]) for outcome in outcomes if outcome["reason"] is not None)
        record = {"input": given, "version": self._version, "output": _hash(outcomes, seconds), "pairs": len(unit)}
        record |= {"reasons": reasons, "seconds": seconds, "outcomes": outcomes}
        write_whole(self._path(given), [json.dumps(record)])


def _hash(outcomes: list[dict[str, Any]], seconds: dict[str, float]) -> str:
    return hashlib.sha256(json.dumps([outcomes, seconds], sort_keys=True).encode()).hexdigest()


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Write the parts of a text under a temporary name, sync, then rename."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
