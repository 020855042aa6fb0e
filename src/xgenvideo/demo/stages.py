"""Resumable stages: a finished stage is recorded with its inputs' fingerprint and skipped when it is run again."""

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

PACKAGE = Path(__file__).parent.parent
PROC = Path("/proc")


@dataclass(frozen=True)
class Stage:
    """One stage. `work` returns JSON values; `rooms` are the files and folders whose source text decides its result.

    `folder` is what it writes, relative to the journey's; it is removed before a fresh start, and also before another
    try unless the stage `resumes` by itself.
    """

    name: str
    work: Callable[[], dict[str, Any]]
    folder: str
    rooms: tuple[str, ...]
    inputs: dict[str, Any] = field(default_factory=dict)
    resumes: bool = False


@dataclass(frozen=True)
class StageRecord:
    """What is known of a stage: `seconds` over all its tries, the peak memory of this process and its children."""

    fingerprint: str
    done: bool = False
    seconds: float = 0.0
    peak_rss_mb: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)


def run_stages(out: Path, stages: list[Stage], say: Callable[[str], None]) -> dict[str, StageRecord]:
    """Run what is not yet done, in order; each stage's fingerprint covers those before it. Records by stage name."""
    out.mkdir(parents=True, exist_ok=True)
    records = _read(out / "stages.json")
    fingerprint = ""
    for number, stage in enumerate(stages, start=1):
        fingerprint = _fingerprint(stage, fingerprint)
        known = records.get(stage.name, StageRecord(""))
        title = f"[{number}/{len(stages)}] {stage.name}"
        same = known.fingerprint == fingerprint
        if same and known.done and (out / stage.folder).exists():
            say(f"{title}: done before, in {known.seconds:.0f} s")
            continue
        say(f"{title} ...")
        begun = same and not known.done
        if not (begun and stage.resumes):
            _remove(out / stage.folder)
        records[stage.name] = _run(out, stage, known if begun else StageRecord(fingerprint), records)
        say(f"{title}: {records[stage.name].seconds:.1f} s, {records[stage.name].peak_rss_mb:.0f} MB")
    return {stage.name: records[stage.name] for stage in stages}


def _run(out: Path, stage: Stage, known: StageRecord, records: dict[str, StageRecord]) -> StageRecord:
    """Run one stage. Time and memory of a try that fails or is interrupted are kept; only a kill -9 loses them."""
    started, result, done = time.perf_counter(), known.result, False
    records[stage.name] = known
    _write(out / "stages.json", records)
    with MemoryWatch() as memory:
        try:
            result, done = stage.work(), True
        finally:
            seconds = known.seconds + time.perf_counter() - started
            peak = max(known.peak_rss_mb, memory.peak_mb())
            record = StageRecord(known.fingerprint, done, seconds, peak, result)
            _write(out / "stages.json", records | {stage.name: record})
    return record


def _fingerprint(stage: Stage, before: str) -> str:
    """SHA-256 over the stage's inputs, the source text of its rooms and the fingerprint of the stage before."""
    digest = hashlib.sha256(json.dumps([stage.name, stage.inputs, before], sort_keys=True).encode())
    for room in stage.rooms:
        place = PACKAGE / room
        files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
        for path in files:
            if "__pycache__" not in path.parts:
                digest.update(path.relative_to(PACKAGE).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, StageRecord]:
    """The records of an earlier run; none where the file is missing or is not ours."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {name: StageRecord(**record) for name, record in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(path: Path, records: dict[str, StageRecord]) -> None:
    write_json(path, {name: asdict(record) for name, record in records.items()})


def write_json(path: Path, values: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a half."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2, sort_keys=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Milestones:
    """Says where curation is, when a step begins and then every ten seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._stage, self._said = say, "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Called for every item."""
        now = time.monotonic()
        if stage != self._stage or now - self._said >= 10:
            self._say(f"{stage}: {done} of {total}")
            self._stage, self._said = stage, now


class MemoryWatch:
    """Samples the memory of this process and all its descendants, four times a second, while it is entered.

    Sums resident sizes, so pages that processes share count more than once: an upper bound. Linux only; elsewhere
    the peak of this process alone.
    """

    INTERVAL_SECONDS = 0.25

    def __init__(self) -> None:
        self._peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-watch", daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def peak_mb(self) -> float:
        """Highest sum seen so far, in MB (10^6 bytes)."""
        self._peak = max(self._peak, resident_mb(os.getpid()))
        return self._peak

    def _watch(self) -> None:
        while not self._stop.wait(self.INTERVAL_SECONDS):
            self.peak_mb()


def resident_mb(pid: int) -> float:
    """Resident memory of a process and its descendants in MB; a process that ends meanwhile counts 0."""
    if not PROC.is_dir():
        return _own_peak_mb()
    try:
        pages = int((PROC / str(pid) / "statm").read_text().split()[1])
        tasks = list((PROC / str(pid) / "task").iterdir())
        children = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6 + sum(resident_mb(child) for child in children)


def _own_peak_mb() -> float:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
