"""What each step of the journey does with inputs still kept: take stored scores, make the missing, judge."""

import hashlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar

from xgenvideo.curate.clips import Clip, read_clip, read_thumbs
from xgenvideo.curate.duplicates import Fingerprint, find_duplicates, fingerprint
from xgenvideo.curate.motion import judge_motion
from xgenvideo.curate.pairs import Entry, choose_split
from xgenvideo.curate.settings import CurateSettings, Decision
from xgenvideo.curate.store import ScoreStore
from xgenvideo.curate.workers import DecodePool
from xgenvideo.errors import DataError

# Raised when a step's code gives other scores: stored ones are then made again.
VERSIONS = {
    "download": "1", "decode": "4", "text_overlay": "1", "semantic": "1", "shots": "2", "safety": "1",
    "watermark_model": "1", "aesthetic_model": "1",
}  # fmt: skip
MEASURED = frozenset({"motion", "picture", "text", "marks", "colours"})  # facts that a step judges and reports itself
SAMPLING = ("fps", "max_frames", "short_side", "jpeg_quality", "crop_bars")
# Tried again by the next run.
TRANSIENT = frozenset({"decode_timeout", "decoder_crashed", "download_timeout", "download_unreachable"})
MODELS = {
    "align_model": "a CLIP or SigLIP model or a release",
    "watermark_model": "an image classification model",
    "aesthetic_model": "an image classification model",
}

NOTHING: Mapping[str, Any] = MappingProxyType({})

Progress = Callable[[str, int, int], None]
Seconds = defaultdict[str, float]  # of processor time, by step
Value = TypeVar("Value")
Result = TypeVar("Result")


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
        if self.entry.reason is not None:
            self.decisions.append(Decision(self.entry.step, self.entry.reason, self.entry.scores, self.entry.detail))

    @property
    def kept(self) -> bool:
        """Whether no step has dropped it."""
        return all(decision.keep for decision in self.decisions)

    @property
    def _drop(self) -> Decision | None:
        return next((decision for decision in self.decisions if not decision.keep), None)

    @property
    def reason(self) -> str | None:
        """The reason code it was dropped with."""
        return self._drop.reason if self._drop else None

    @property
    def lost_at(self) -> str | None:
        """The step that dropped it."""
        return self._drop.step if self._drop else None

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
        assert self.entry.pair is not None, f"{self.entry.name} has no record"
        return {
            "video": self.entry.pair.video,
            "content": self.content,
            "start": self.entry.start,
            "end": self.entry.end if self.entry.end is not None else self.facts.get("seconds"),
            "published": self.entry.scores,
            "facts": {name: value for name, value in self.facts.items() if name not in MEASURED},
            "decisions": [decision.to_dict() for decision in self.decisions],
        }

    def to_dict(self) -> dict[str, Any]:
        """A line of audit.jsonl."""
        pair = self.entry.pair
        status = "kept" if self.kept else "failed" if self.failed else "dropped"
        record = {"number": self.number, "name": self.entry.name, "key": pair.key if pair else self.entry.name}
        outcome = {"status": status, "step": self.lost_at, "reason": self.reason}
        detail = {"detail": self._drop.detail if self._drop else ""}
        if pair is None:
            return record | outcome | detail
        return record | outcome | detail | {"caption": pair.caption, "source": pair.source} | self.lineage()


class Workplace:
    """The folder of stored scores and decoded clips, the settings, and where progress is told. A context manager."""

    def __init__(self, folder: Path, settings: CurateSettings, progress: Progress | None, part: str = "") -> None:
        self.folder, self.settings, self.progress, self.part = folder, settings, progress, part
        self.seconds: Seconds = defaultdict(float)
        self.clips = folder / "clips"
        s = settings
        models = {name: folder_signature(getattr(s, name), name) for name in MODELS}  # before a file is opened
        self.clips.mkdir(parents=True, exist_ok=True)
        self.downloads = self._store("download", "")
        self.decoded = self._store("decode", s.signature(*SAMPLING))
        self.texts = self._store(
            "text_overlay", s.signature("ocr_frames", "ocr_side", "min_text_score", "min_text_letters") + "+" +
            self.decoded.version,
        )  # fmt: skip
        self.shots = self._store("shots", s.split_shots)
        self.safety = self._store("safety", s.signature("safety_frames") + "+" + self.decoded.version)
        made = s.signature("alignment_frames") + models["align_model"]
        self.semantics = self._store("semantic", made + "+" + self.decoded.version)
        self.classified: dict[str, ScoreStore] = {}
        for name in ("watermark_model", "aesthetic_model"):
            label = s.signature("classifier_frames", name.replace("_model", "_label"))
            self.classified[name] = self._store(name, f"{label}{models[name]}+{self.decoded.version}")

    def _store(self, step: str, signature: str) -> ScoreStore:
        return ScoreStore(self.folder / "scores", step, f"{VERSIONS[step]}-{signature}", self.part)

    def __enter__(self) -> "Workplace":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for store in (self.downloads, self.shots, *self.of_clips):
            store.close()

    @property
    def of_clips(self) -> tuple[ScoreStore, ...]:
        """Stores of what decoding and models found."""
        return self.decoded, self.texts, self.safety, self.semantics, *self.classified.values()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Count the processor time of this process, its threads and the children that end meanwhile for a step."""
        begun = sum(os.times()[:4])
        try:
            yield
        finally:
            self.seconds[step] += sum(os.times()[:4]) - begun

    def clip_path(self, content: str) -> Path:
        """Where the decoded clip of a content hash lies; other sampling settings give another file."""
        return self.clips / f"{content[:32]}-{self.decoded.version.rpartition('-')[2]}.npz"

    def has_clip(self, content: str) -> bool:
        """Whether a content was decoded, with or without success, and its clip is there."""
        return content in self.decoded and ("frames" not in self.decoded[content] or self.clip_path(content).exists())

    def read_clip(self, content: str) -> Clip:
        """The decoded clip of a content hash."""
        return read_clip(self.clip_path(content))

    def report(self, stage: str, done: int, total: int = 0) -> None:
        """Tell the caller how far a stage is."""
        if self.progress is not None:
            self.progress(stage, done, total)

    def tell(self, stage: str, values: Iterable[Value], total: int) -> Iterator[Value]:
        """The values, telling the caller after each."""
        for done, value in enumerate(values, start=1):
            yield value
            self.report(stage, done, total)


def add_up(total: Seconds, seconds: dict[str, float]) -> None:
    """Add what other processes have taken."""
    for step, value in seconds.items():
        total[step] += value


def folder_signature(given: str, setting: str) -> str:
    """Short hash of the names, sizes and times of a model's files, "" where none is given. Raises DataError where there
    is no such folder.
    """
    if not given:
        return ""
    folder = Path(given)
    if not folder.is_dir():
        raise DataError(f"curate.{setting} = {folder}: is no folder; give that of {MODELS[setting]}")
    files = sorted(
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir() if path.is_file()
    )
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:12]


def judge_languages(items: list[Item], work: Workplace) -> None:
    """Captions first: they cost nothing."""
    from xgenvideo.curate.language import LanguageDetector, judge_language

    detector = LanguageDetector()
    for item in items:
        assert item.entry.pair is not None
        item.decisions.append(judge_language(item.entry.pair.caption, detector, work.settings))


def decode(items: list[Item], work: Workplace) -> None:
    """Hash, decode and measure every file once, in child processes; the same content under two names is one job."""
    settings, jobs = work.settings, {}
    hashes: dict[Path, str | None] = {}
    for item in items:
        assert item.entry.path is not None, f"{item.entry.name} has no file"
        assert item.entry.pair is not None, f"{item.entry.name} has no record"
        item.split = choose_split(item.entry.pair, settings.heldout_share).split
        if item.content is None:
            if item.entry.path not in hashes:
                hashes[item.entry.path] = content_hash(item.entry.path)
            item.content = clip_hash(hashes[item.entry.path], item.entry)
        if item.content is None:
            item.decisions.append(Decision("decode", "missing_file", detail="no such file in the folder"))
            continue
        stored = work.has_clip(item.content)
        if not stored:
            work.decoded.forget(item.content)
        if not stored and item.content not in jobs:
            out = str(work.clip_path(item.content))
            sampling = {name: getattr(settings, name) for name in SAMPLING}
            times = {"start": item.entry.start, "end": item.entry.end}
            jobs[item.content] = {"path": str(item.entry.path), "out": out} | times | sampling
    failed = _run_jobs(jobs, work)
    for item in items:
        if item.content is not None:
            _take_facts(item, failed.get(item.content) or work.decoded[item.content], settings)


def _run_jobs(jobs: dict[str, dict[str, Any]], work: Workplace) -> dict[str, dict[str, Any]]:
    """Decode; returns the answers that are not stored, because another try may succeed."""
    failed: dict[str, dict[str, Any]] = {}
    if not jobs:
        return failed
    settings = work.settings
    with DecodePool(min(settings.processes, len(jobs)), settings.decode_seconds, settings.decode_memory_mb) as pool:
        for content, answer in work.tell("decode", pool.run(jobs.items()), len(jobs)):
            if answer.get("reason") in TRANSIENT:
                failed[content] = answer
            else:
                work.decoded.put(content, answer)
    return failed


def _take_facts(item: Item, answer: dict[str, Any], settings: CurateSettings) -> None:
    if "reason" in answer:
        item.decisions.append(Decision("decode", answer["reason"], detail=answer.get("detail", "")))
        return
    item.facts = answer
    short = answer["frames"] < settings.min_frames or answer["seconds"] < settings.min_seconds
    scores = {"seconds": answer["seconds"], "frames": answer["frames"]}
    item.decisions.append(Decision("decode", "too_short" if short else None, scores))


def content_hash(path: Path) -> str | None:
    """SHA-256 of a file; None when there is none that can be read."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def clip_hash(file: str | None, entry: Entry) -> str | None:
    """What names a clip's content: its file's SHA-256, or one of that and of the clip's times in the file."""
    if file is None or (entry.start == 0 and entry.end is None):
        return file
    return hashlib.sha256(f"{file} {entry.start!r} {entry.end!r}".encode()).hexdigest()


def judge_motions(items: list[Item], work: Workplace) -> None:
    """Stills and joined clips, by the scores that decoding left."""
    for item in items:
        item.decisions.append(judge_motion(item.facts["motion"], work.settings))


def judge_texts(items: list[Item], work: Workplace) -> None:
    """Marks for all, OCR for the clips with text-like strokes."""
    from xgenvideo.curate.text_overlay import TextReader, judge_text

    settings = work.settings
    suspects = [item for item in items if item.facts["text"]["strokes"] >= settings.min_strokes]
    missing = sorted({str(item.content) for item in suspects if str(item.content) not in work.texts})
    readers = threading.local()

    def read(content: str) -> list[list[dict[str, Any]]]:
        if not hasattr(readers, "reader"):  # one engine a thread: it keeps state
            readers.reader = TextReader(settings)
        return [readers.reader.read(frame) for frame in work.read_clip(content).frames(settings.ocr_frames)]

    for content, frames in work.tell("text_overlay", in_threads(read, missing, settings), len(missing)):
        work.texts.put(content, {"frames": frames})
    read_ones = {id(item) for item in suspects}
    for item in items:
        strokes = {"strokes": item.facts["text"]["strokes"]}
        frames = work.texts[str(item.content)]["frames"] if id(item) in read_ones else []
        judged = judge_text(frames, settings, item.facts["marks"])
        item.decisions.append(Decision(judged.step, judged.reason, judged.scores | strokes))


def in_threads(
    work: Callable[[Value], Result], values: list[Value], settings: CurateSettings
) -> Iterator[tuple[Value, Result]]:
    """(value, work(value)) for all values, on as many threads as there are cores; the models release Python's lock."""
    with ThreadPoolExecutor(max(1, min(settings.processes, len(values)))) as pool:
        yield from zip(values, pool.map(work, values), strict=True)


class _Prints(Mapping[int, Fingerprint]):
    """Fingerprints of items by their number, each made when it is asked for: a million take tens of gigabytes."""

    def __init__(self, items: list[Item], work: Workplace) -> None:
        self._items, self._work = {item.number: item for item in items}, work

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[int]:
        return self._work.tell("duplicates", self._items, len(self._items))

    def __getitem__(self, number: int) -> Fingerprint:
        item = self._items[number]
        thumbs, pts = read_thumbs(self._work.clip_path(str(item.content)))
        # Larger than what is stored is no better: an enlarged copy must not win.
        side = min(item.facts["width"], item.facts["height"], self._work.settings.short_side)
        return fingerprint(thumbs, pts, item.facts["seconds"], (-side, number))


def judge_duplicates(items: list[Item], work: Workplace) -> None:
    """Of clips with the same pictures in the same order the largest is kept, or the first of the same size."""
    found = find_duplicates(_Prints(items, work), work.settings)
    names = {kept: "" for kept, _ in found.values()}
    names.update((item.number, item.entry.name) for item in items if item.number in names)
    for item in items:
        kept, alike = found.get(item.number, (None, 0.0))
        if kept is None:
            item.decisions.append(Decision("duplicates"))
        else:
            scores = {"likeness": alike, "of": names[kept]}
            item.decisions.append(Decision("duplicates", "near_duplicate", scores, f"of {names[kept]}"))
