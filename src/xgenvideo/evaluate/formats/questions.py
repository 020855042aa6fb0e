"""Multiple-choice benchmarks: each published annotation format as questions with options and the right one's number."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgenvideo.errors import DataError
from xgenvideo.evaluate.formats.files import Row, field, read_rows, read_values

LETTERS = "ABCDEFGHIJ"
# "A. text", "(B) text", "C: text", and TempCompass's "Option 1: text", "Sentence A: text", "Caption B: text".
_MARK = re.compile(r"^\s*(?:(?:option|sentence|caption)\s+\w+\s*[:.]|\(?[A-J][.):])\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """One question about one video. `video`: name or path as annotated, with or without its ending.

    `answer`: number of the right option, None where the benchmark keeps it secret. `kind`: accuracies are given by it.
    `start` and `end`: seconds of the part that is asked about, None for the whole video.
    """

    video: str
    question: str
    options: tuple[str, ...]
    answer: int | None
    kind: str
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if len(self.options) < 2 or (self.answer is not None and not 0 <= self.answer < len(self.options)):
            raise DataError(f"question {self.question!r} has the options {self.options} and the answer {self.answer}")


def read_video_mme(path: Path) -> list[Asked]:
    """Video-MME (arXiv 2405.21075): lmms-lab/Video-MME's Parquet, a row a question; or a row a video with `questions`.

    Fields videoID (else video_id), question, options "A. text", answer "A", task_type, duration.
    """
    found = []
    for video in read_rows(path):
        for row in video.get("questions") or [video]:
            whole = video | row
            options = _unmarked(field(whole, path, "options"))
            answer = _letter(field(whole, path, "answer"), options)
            kind = f"{field(whole, path, 'duration')}/{field(whole, path, 'task_type')}"
            name = str(field(whole, path, "videoID", "video_id"))
            found.append(Asked(name, field(whole, path, "question"), options, answer, kind))
    return found


def read_candidates(path: Path) -> list[Asked]:
    """MVBench (arXiv 2311.17005), TVBench (arXiv 2410.07752) and MLVU (arXiv 2406.04264): JSON, a file a task.

    `path` is a file, or a folder of which every .json is read. Fields video (MLVU's later files: video_name), question,
    candidates, answer (the text of the right one), and start and end in seconds where the question is about a part. The
    kind is question_type where given (MLVU), else the file's name.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: holds no .json; give the benchmark's folder of annotation files, or one of them")
    return [_candidate(row, file) for file in files for row in read_rows(file)]


def _candidate(row: Row, file: Path) -> Asked:
    options = tuple(str(one) for one in field(row, file, "candidates"))
    answer = str(field(row, file, "answer"))
    if answer not in options:
        raise DataError(f"{file}: the answer {answer!r} is none of the candidates {list(options)}")
    start, end = (None if row.get(name) is None else float(row[name]) for name in ("start", "end"))
    kind = str(row.get("question_type") or file.stem)
    video = str(field(row, file, "video", "video_name"))
    return Asked(video, field(row, file, "question"), options, options.index(answer), kind, start, end)


def read_longvideobench(path: Path) -> list[Asked]:
    """LongVideoBench (arXiv 2407.15754): lvb_val.json or its Parquet, whose options are option0 to option4 or "N/A".

    Fields video_path, question, candidates, correct_choice (a number; absent or -1 in the test set), duration_group.
    Subtitles are not read: the model sees pictures alone.
    """
    found = []
    for row in read_rows(path):
        listed = row.get("candidates") or [row.get(f"option{number}") for number in range(5)]
        options = tuple(str(one) for one in listed if one not in (None, "N/A"))
        right = row.get("correct_choice")
        answer = None if right is None or int(right) < 0 else int(right)
        kind = f"{row.get('duration_group')}/{row.get('question_category')}"
        found.append(Asked(field(row, path, "video_path"), field(row, path, "question"), options, answer, kind))
    return found


def read_egoschema(path: Path) -> list[Asked]:
    """EgoSchema (arXiv 2308.09126): questions.json with q_uid, question, "option 0" to "option 4".

    The answers are public for 500 of them: subset_answers.json, a dict from q_uid to a number, read from beside it. Or
    the Parquet of the harnesses: video_idx, question, option (a list), answer (a number, as text).
    """
    beside = path.with_name("subset_answers.json")
    answers: dict[str, Any] = read_values(beside) if beside.is_file() and path.suffix == ".json" else {}
    found = []
    for row in read_rows(path):
        video = str(field(row, path, "q_uid", "video_idx"))
        listed = row.get("option") or [field(row, path, f"option {number}") for number in range(5)]
        right = answers.get(video, row.get("answer"))
        answer = int(str(right)) if str(right).isdecimal() else None
        found.append(Asked(video, field(row, path, "question"), _unmarked(listed), answer, "egoschema"))
    return found


def read_tempcompass(path: Path) -> list[Asked]:
    """TempCompass (arXiv 2403.00476): multi-choice.json, caption_matching.json or yes_no.json, or their Parquet.

    JSON: video, then dimension, then questions whose text has an option a line, and the right line as the answer.
    Parquet: the same with video_id and dim as columns. The kind is the dimension.
    """
    values = read_values(path)
    if isinstance(values, list):
        return [
            _tempcompass(str(field(row, path, "video_id")), str(field(row, path, "dim")), row, path) for row in values
        ]
    if not isinstance(values, dict) or not all(isinstance(one, dict) for one in values.values()):
        raise DataError(f"{path}: must map videos to dimensions to questions; is it of TempCompass's `questions`?")
    return [
        _tempcompass(video, kind, row, path)
        for video, kinds in values.items()
        for kind, rows in kinds.items()
        for row in rows
    ]


def _tempcompass(video: str, kind: str, row: Row, path: Path) -> Asked:
    question, *lines = str(field(row, path, "question")).split("\n")
    answer = str(field(row, path, "answer"))
    if not lines and answer.lower() in ("yes", "no"):
        return Asked(video, question, ("yes", "no"), ("yes", "no").index(answer.lower()), kind)
    if answer not in lines:
        raise DataError(f"{path}: video {video}: the answer {answer!r} is none of the lines {lines}")
    return Asked(video, question, _unmarked(lines), lines.index(answer), kind)


def _unmarked(options: Sequence[str]) -> tuple[str, ...]:
    """Options without their letters, where every one has one."""
    texts = tuple(str(option).strip() for option in options)
    return tuple(_MARK.sub("", text) for text in texts) if all(_MARK.match(text) for text in texts) else texts


def _letter(answer: str, options: Sequence[str]) -> int:
    number = LETTERS.find(answer.strip().upper()) if len(answer.strip()) == 1 else -1
    if not 0 <= number < len(options):
        raise DataError(f"the answer {answer!r} is no letter of {len(options)} options")
    return number


READERS: dict[str, Callable[[Path], list[Asked]]] = {
    "video-mme": read_video_mme,
    "mvbench": read_candidates,
    "mlvu": read_candidates,
    "tvbench": read_candidates,
    "longvideobench": read_longvideobench,
    "egoschema": read_egoschema,
    "tempcompass": read_tempcompass,
}


def by_video(questions: Sequence[Asked]) -> Iterator[tuple[str, list[Asked]]]:
    """Each video in order of its first question, with all of its questions: it is decoded once."""
    grouped: dict[str, list[Asked]] = {}
    for one in questions:
        grouped.setdefault(one.video, []).append(one)
    yield from grouped.items()
