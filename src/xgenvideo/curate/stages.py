"""What each step of the journey does with inputs still kept: take stored scores, make the missing, judge."""

import hashlib
import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from xgenvideo.curate.clips import Clip, clip_path, read_clip
from xgenvideo.curate.inputs import Item
from xgenvideo.curate.motion import judge_motion
from xgenvideo.curate.pairs import Entry, choose_split
from xgenvideo.curate.settings import CurateSettings, Decision
from xgenvideo.curate.store import ScoreStore
from xgenvideo.curate.workers import DecodePool
from xgenvideo.errors import DataError

# Raised when a step's code gives other scores: stored ones are then made again.
VERSIONS = {
    "download": "1", "decode": "5", "text_overlay": "1", "semantic": "1", "shots": "2", "safety": "1",
    "watermark_model": "1", "aesthetic_model": "1",
}  # fmt: skip
SAMPLING = ("fps", "max_frames", "short_side", "jpeg_quality", "crop_bars")
# Tried again by the next run.
TRANSIENT = frozenset({"decode_timeout", "decoder_crashed", "download_timeout", "download_unreachable"})
MODELS = {
    "align_model": "a CLIP or SigLIP model or a release",
    "watermark_model": "an image classification model",
    "aesthetic_model": "an image classification model",
}

Progress = Callable[[str, int, int], None]
Seconds = defaultdict[str, float]  # of processor time, by step
Value = TypeVar("Value")
Result = TypeVar("Result")


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
        """Where the decoded clip of a content hash lies."""
        return clip_path(self.clips, self.sampling, content)

    @property
    def sampling(self) -> str:
        """Short hash of how clips are sampled, in the names of their files."""
        return self.decoded.version.rpartition("-")[2]

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
        item.decisions.append(judge_language(item.pair.caption, detector, work.settings))


def decode(items: list[Item], work: Workplace) -> None:
    """Hash, decode and measure every file once, in child processes; the same content under two names is one job."""
    settings, jobs = work.settings, {}
    hashes: dict[Path, str | None] = {}
    for item in items:
        assert item.entry.path is not None, f"{item.entry.name} has no file"
        item.split = choose_split(item.pair, settings.heldout_share).split
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
            out = work.clip_path(item.content)
            out.parent.mkdir(exist_ok=True)
            sampling = {name: getattr(settings, name) for name in SAMPLING}
            times = {"start": item.entry.start, "end": item.entry.end}
            jobs[item.content] = {"path": str(item.entry.path), "out": str(out)} | times | sampling
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
