"""The ledger of a run: which samples each step consumed, by global position and key; and the proof that none was lost.

run/ledger/attempt-00002-rank-00000.jsonl: one file an attempt (a start of the program) and rank. Its first line says
from which step the attempt went on, each other line is one step's share of that rank. Files are only ever appended to:
what a crash undid stays written down, and is void because a later attempt went on from before it.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from xgenvideo.checkpoint.files import sync_folder
from xgenvideo.checkpoint.ranks import Ranks
from xgenvideo.errors import DataError

LEDGER = "ledger"
FILE = re.compile(r"attempt-(\d{5})-rank-(\d{5})\.jsonl")
NAMED_PROBLEMS = 5


class Ledger:
    """Writes one rank's file of one attempt. Every rank of the job opens one, at the same point."""

    def __init__(self, out: Path, ranks: Ranks, resumed_step: int, epoch_samples: int) -> None:
        """`resumed_step`: steps done already; `epoch_samples`: samples of an epoch, 0 where there is no common one."""
        folder = out / LEDGER
        self.attempt: int = ranks.together(
            lambda: _attempts(folder) if ranks.rank == 0 else 0, lambda found: [found[0] + 1] * ranks.size
        )
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"attempt-{self.attempt:05d}-rank-{ranks.rank:05d}.jsonl"
        self._file, self._lines = path.open("x", encoding="utf-8"), 0
        header = {"attempt": self.attempt, "ranks": ranks.size, "rank": ranks.rank}
        self._write(header | {"resumed_step": resumed_step, "epoch_samples": epoch_samples})
        self.sync()
        sync_folder(folder)

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(
        self,
        step: int,
        position: int,
        keys: Sequence[str],
        substituted: int = 0,
        bad: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Write down what this rank read for `step`: samples `keys` at `position` and on, `substituted` of them others
        than the order says, because those (`bad`: key and reason) could not be read.
        """
        line = {"step": step, "position": position, "keys": list(keys), "substituted": substituted}
        self._write(line | ({"bad": [list(one) for one in bad]} if bad else {}))

    def skip(self, step: int, position: int, samples: int) -> None:
        """Write down that after `step` so many samples from `position` on are passed over, and are not learnt."""
        self._write({"step": step, "position": position, "skipped": samples})

    def sync(self) -> dict[str, int]:
        """Wait until the lines are on disk, before a save; returns where the ledger stands, for the state saved."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"attempt": self.attempt, "lines": self._lines}

    def _write(self, values: dict[str, Any]) -> None:
        self._file.write(json.dumps(values, separators=(",", ":")) + "\n")
        # Out of this process, so that kill -9 loses no line; a power cut may lose those after the last sync.
        self._file.flush()
        self._lines += 1


@dataclass
class Account:
    """The ledger read and added up. Positions count samples over all epochs; a step is redone when a crash undid it.

    `bad`: keys of samples that could not be read, each with its reason.
    """

    attempts: int = 0
    steps: int = 0
    samples: int = 0
    skipped: int = 0
    substituted: int = 0
    lost: int = 0
    replayed: int = 0
    steps_redone: int = 0
    steps_redone_max: int = 0
    layouts: list[int] = field(default_factory=list)
    epochs: dict[int, int] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        counts = (f"epoch {epoch}: {count}" for epoch, count in sorted(self.epochs.items()))
        epochs = ", ".join(counts) or "each dataset in epochs of its own"
        told = f"{self.samples} samples in {self.steps} steps, {self.attempts} attempts on {self.layouts} ranks"
        return f"{told}; {epochs}; lost {self.lost}, replayed {self.replayed}, {self.steps_redone} steps redone"


@dataclass
class _Attempt:
    number: int
    resumed_step: int
    epoch_samples: int
    ranks: int
    lines: list[dict[str, Any]] = field(default_factory=list)


def _attempts(folder: Path) -> int:
    """The number of the last attempt that left a file; 0 when there was none."""
    found = [FILE.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(match[1]) for match in found if match), default=0)


def read_account(out: Path) -> Account:
    """Add up the ledger of a run. Raises DataError: no ledger, or a line that cannot be read."""
    attempts = _read(out / LEDGER)
    if not attempts:
        raise DataError(f"{out / LEDGER}: holds no ledger, so what each step consumed cannot be shown")
    account = Account(attempts=len(attempts), layouts=[attempt.ranks for attempt in attempts])
    _count_redone(attempts, account)
    _add_up(attempts, account)
    return account


def _read(folder: Path) -> list[_Attempt]:
    """The attempts in their order, the ranks' lines together."""
    found: dict[int, _Attempt] = {}
    for path in sorted(folder.glob("attempt-*.jsonl")):
        lines = list(_lines(path))
        if not lines:
            continue  # died before its first line was written: it consumed nothing
        head = lines[0]
        number, size = int(head["attempt"]), int(head["epoch_samples"])
        attempt = found.setdefault(number, _Attempt(number, int(head["resumed_step"]), size, int(head["ranks"])))
        attempt.lines += lines[1:]
    return [found[number] for number in sorted(found)]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file; a last one without its end was being written when its process died."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            return
        try:
            yield json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}: line {number} cannot be read ({error})") from error


def _last_standing(attempts: list[_Attempt], place: int) -> float:
    """The last step of an attempt that no later attempt went back before."""
    return min((later.resumed_step for later in attempts[place + 1 :]), default=float("inf"))


def _count_redone(attempts: list[_Attempt], account: Account) -> None:
    reached = 0
    for place, attempt in enumerate(attempts):
        redone = max(0, reached - attempt.resumed_step) if place else 0
        account.steps_redone += redone
        account.steps_redone_max = max(account.steps_redone_max, redone)
        reached = max([attempt.resumed_step, *(line["step"] for line in attempt.lines)])


def _add_up(attempts: list[_Attempt], account: Account) -> None:
    """Every position exactly once, every key once an epoch, a redone step with the same keys as before."""
    seen, keys, steps = Counter[int](), dict[int, str](), set[int]()
    void: list[dict[str, Any]] = []
    for place, attempt in enumerate(attempts):
        last = _last_standing(attempts, place)
        for line in attempt.lines:
            if line["step"] > last or ("skipped" in line and line["step"] >= last):
                void.append(line)
                continue
            covered = range(line["position"], line["position"] + line.get("skipped", len(line.get("keys", ()))))
            seen.update(covered)
            account.skipped += line.get("skipped", 0)
            if "keys" in line:
                steps.add(line["step"])
                keys.update(zip(covered, line["keys"], strict=True))
                account.substituted += line["substituted"]
                account.bad.update(line.get("bad", ()))
                account.ends[line["step"]] = max(account.ends.get(line["step"], 0), covered.stop)
    account.steps, account.samples = len(steps), len(keys)
    end = max(seen, default=-1) + 1
    account.lost, account.replayed = end - len(seen), sum(count - 1 for count in seen.values())
    if steps and sorted(steps) != list(range(1, max(steps) + 1)):
        account.problems.append(f"{max(steps) - len(steps)} of the steps 1 to {max(steps)} are not in the ledger")
    _check_epochs(keys, attempts[0].epoch_samples, account)
    _check_redone(void, keys, account)


def _check_epochs(keys: dict[int, str], size: int, account: Account) -> None:
    """A key twice in an epoch is one too many, but for those that took the place of one that could not be read."""
    if not size:
        return
    epochs: dict[int, Counter[str]] = {}
    for position, key in keys.items():
        epochs.setdefault(position // size, Counter())[key] += 1
    account.epochs = {epoch: sum(counts.values()) for epoch, counts in epochs.items()}
    twice = [f"{key} in epoch {epoch}" for epoch, counts in epochs.items() for key, n in counts.items() if n > 1]
    if len(twice) > account.substituted:
        named = ", ".join(twice[:NAMED_PROBLEMS])
        account.problems.append(f"{len(twice)} samples twice in an epoch, {account.substituted} substituted: {named}")


def _check_redone(void: list[dict[str, Any]], keys: dict[int, str], account: Account) -> None:
    other = [
        f"{key} at {line['position'] + offset} was {keys[line['position'] + offset]} later"
        for line in void
        for offset, key in enumerate(line.get("keys", ()))
        if keys.get(line["position"] + offset, key) != key
    ]
    if other:
        account.problems.append(f"{len(other)} samples of redone steps differ: {', '.join(other[:NAMED_PROBLEMS])}")
