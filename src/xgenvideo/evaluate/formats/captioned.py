"""Retrieval and captioning benchmarks: each published annotation format as videos with the texts that describe them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xgenvideo.errors import DataError
from xgenvideo.evaluate.formats.files import field, read_rows, read_values


@dataclass(frozen=True)
class Captioned:
    """One video, as annotated, with or without its ending, and its texts, each of which is a query of its own."""

    video: str
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.texts or not all(text.strip() for text in self.texts):
            raise DataError(f"video {self.video} has the texts {self.texts}: every video needs one, and none is empty")


def read_pairs(path: Path) -> list[Captioned]:
    """MSR-VTT's 1k-A split (Yu et al. 2018), and any set in the same shape: a row a text, or a row a video.

    MSRVTT_JSFUSION_test.csv has key, vid_key, video_id, sentence; msrvtt_ret_test1k.json and its relatives have video
    (else video_id) and caption, a text or several. Rows of one video are put together.
    """
    texts: dict[str, list[str]] = {}
    for row in read_rows(path):
        said = field(row, path, "sentence", "caption")
        texts.setdefault(str(field(row, path, "video", "video_id")), []).extend(
            [said] if isinstance(said, str) else said
        )
    return [Captioned(video, tuple(said)) for video, said in texts.items()]


def read_msvd(path: Path) -> list[Captioned]:
    """MSVD (Chen and Dolan 2011): AllVideoDescriptions.txt, a line "VIDEO_START_END text", or JSON as `read_pairs`.

    The split is the names in test_list.txt beside it, one a line, where that file is there; else all videos.
    """
    if path.suffix != ".txt":
        return read_pairs(path)
    listed = path.with_name("test_list.txt")
    wanted = listed.read_text(encoding="utf-8").split() if listed.is_file() else None
    texts: dict[str, list[str]] = {name: [] for name in wanted or []}
    if not path.is_file():
        raise DataError(f"{path}: no such annotation file; give AllVideoDescriptions.txt or a .json")
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, text = line.strip().partition(" ")
        # The file opens with lines of comment.
        if text and not name.startswith("#") and (wanted is None or name in texts):
            texts.setdefault(name, []).append(text)
    return [Captioned(video, tuple(said)) for video, said in texts.items()]


def read_didemo(path: Path) -> list[Captioned]:
    """DiDeMo (arXiv 1708.01641): test_data.json, a row a moment with video and description; or JSON as `read_pairs`.

    Paragraph retrieval, the common protocol: all descriptions of a video make one text, in the order of the file.
    """
    rows = read_rows(path)
    if "description" not in rows[0]:
        return read_pairs(path)
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(str(field(row, path, "video")), []).append(str(field(row, path, "description")).strip())
    return [Captioned(video, (" ".join(said),)) for video, said in texts.items()]


def read_activitynet(path: Path) -> list[Captioned]:
    """ActivityNet Captions (arXiv 1705.00754): val_1.json, a dict from video to sentences and timestamps.

    Paragraph retrieval, the common protocol: the sentences of a video make one text. Or JSON as `read_pairs`.
    """
    values = read_values(path)
    if not isinstance(values, dict):
        return read_pairs(path)
    return [
        Captioned(video, (" ".join(str(one).strip() for one in field(about, path, "sentences")),))
        for video, about in values.items()
    ]


def read_vatex(path: Path) -> list[Captioned]:
    """VATEX (arXiv 1904.03493): vatex_validation_v1.0.json, a row a video with videoID and ten enCap.

    The videoID ends in the times of the clip, by which downloaded clips are named; a clip is read whole.
    """
    return [Captioned(str(field(row, path, "videoID")), tuple(field(row, path, "enCap"))) for row in read_rows(path)]


READERS: dict[str, Callable[[Path], list[Captioned]]] = {
    "msr-vtt": read_pairs,
    "msvd": read_msvd,
    "didemo": read_didemo,
    "activitynet": read_activitynet,
    "vatex": read_vatex,
}
