"""Every threshold of curation, each with its source. One frozen record, saved in the dataset's card."""

import dataclasses
import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Any

from xgenvideo.config.read import from_dict
from xgenvideo.errors import ConfigError

PRESETS = ("panda-10m", "internvid-flt")
SHOT_DETECTORS = ("light", "transnetv2")
DOWNLOADS = ("off", "http", "yt-dlp")
HOOK_RULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
HOST_RULE = re.compile(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
STEPS = ("language", "captions", "motion", "picture", "text_overlay", "alignment", "duplicates")
TEXTS = frozenset(
    (
        *(
            "aesthetic_label",
            "aesthetic_model",
            "align_column",
            "align_model",
            "blocked_hashes",
            "concepts",
            "download",
        ),
        *("download_hosts", "language", "preset", "split_shots", "watermark_label", "watermark_model"),
    )
)
ASKED = ("aesthetics", "watermark_model", "aesthetic_model", "balance")  # each by a setting of its own
ALL_STEPS = (*STEPS, "safety")  # needs a package of its own, and its verdict is a matter of policy


@dataclass(frozen=True)
class CurateSettings:
    """What curation keeps. Thresholds were set on 88 published Panda-70M samples and on generated clips."""

    steps: tuple[str, ...] = STEPS
    # The publisher's own choice out of a listing, by the scores that it comes with; empty: all of it.
    preset: str = ""
    # Sampling: the frames that training reads.
    fps: float = 2.0
    max_frames: int = 64
    short_side: int = 256
    jpeg_quality: int = 90
    min_seconds: float = 1.0
    min_frames: int = 2
    # Decoding happens in child processes; a file that needs more than this is given up.
    workers: int = 0  # 0: one per core
    decode_seconds: float = 60.0
    decode_memory_mb: int = 3072
    # Models run in a child process, over so many pairs; killed by one of them, the child costs that pair. Its models
    # take 1 to 2 GB. A unit that says nothing for so long is given up.
    unit_pairs: int = 10_000
    unit_memory_mb: int = 8192
    unit_seconds: float = 1800.0
    # Videos that are not there: "off", or how a listing's URL is fetched: "http", "yt-dlp", or your "module:function".
    # Only from these hosts, with commas between them ("*.example.com": all below one). Sections (yt-dlp and ffmpeg):
    # the clips alone instead of whole videos. What was fetched is kept, or removed when its unit is done.
    download: str = "off"
    download_hosts: str = ""
    max_download_mb: float = 2000.0
    download_seconds: float = 900.0
    download_workers: int = 4
    download_sections: bool = False
    keep_downloads: bool = True
    # Shots: "" leaves clips whole, so that one with a cut inside is dropped as joined; "light" and "transnetv2" make a
    # clip of every shot, 2 to 60 seconds long (what Panda-70M and InternVid keep, arXiv 2402.19479 and 2307.06942).
    split_shots: str = ""
    min_clip_seconds: float = 2.0
    max_clip_seconds: float = 60.0
    max_scan_seconds: float = 3600.0  # of a source; what comes later is not used (7 MB of frames a minute are held)
    scan_seconds: float = 600.0  # after which looking through one file is given up
    # Captions. Below 5 words or 25 letters the language model guesses; 0.4 is what web-scale filters use at most
    # (datatrove keeps 0.65 for whole pages; captions are single sentences).
    language: str = "en"
    min_language_score: float = 0.4
    min_language_letters: int = 25
    min_caption_words: int = 3
    max_caption_words: int = 400
    # E-mail addresses and telephone numbers in captions are replaced. Repetition: share of word pairs said before; the
    # most of 88 real captions is 0.10. Almost equal captions are counted; 0: none is dropped for them.
    mask_personal: bool = True
    max_caption_repetition: float = 0.5
    max_alike_captions: int = 0
    # Picture, each set so that it keeps all but one of the 88 real clips (a game in a black frame) and every clean
    # generated clip: black bars as a share of the frame, brightness that a twentieth of the pixels exceed, share of
    # white, variance of the Laplacian, change of the camera's step over the frame's side. Bars may be cut off instead.
    crop_bars: bool = False
    max_bars: float = 0.5
    min_light: float = 24.0
    max_glare: float = 0.7
    min_sharpness: float = 5.0
    max_shake: float = 0.5
    # Safety, where it is among the steps: open_nsfw's score of the worst frame (its authors call over 0.8 unsafe with a
    # high probability), and a file of SHA-256 sums of videos that may not be used.
    max_unsafe_score: float = 0.8
    safety_frames: int = 3
    blocked_hashes: str = ""
    # Still: largest mean change of a 16 x 16 block of a frame (0-255) against the clip's median frame.
    min_change: float = 6.0
    # Joined: a cut is a change of the whole picture, far over the clip's other changes.
    cut_change: float = 0.35
    cut_ratio: float = 3.0
    max_cut_likeness: float = 0.6
    # A cut between plain grounds may look alike; it then changes nearly every block.
    whole_cut_change: float = 0.95
    whole_cut_ratio: float = 8.0
    # Text: RapidOCR's own score; detection alone boxes whole frames that hold no text.
    # Thin strokes side by side: 4 is the median and 6 the most of 172 clean generated clips, text has 12 and more.
    min_strokes: int = 8
    ocr_frames: int = 3
    ocr_side: int = 480
    min_text_score: float = 0.6
    min_text_letters: int = 2
    min_watermark_share: float = 1.0  # of the frames read
    min_subtitle_frames: int = 2
    max_text_density: float = 0.08  # of the frame's area, in the median frame
    # Watermark density: area that overlays cover times the frames they are present in, over the area of all frames. The
    # smallest of 37 publishers' marks on the 88 real clips covers 0.003.
    max_watermark_density: float = 0.001
    # Marks without letters: share of the mark's place that is staying edges, their mean gradient over the place (levels
    # a pixel), and staying edges around it. Set on the same clips: most scenes that stand still have less fill and more
    # around. A mark over `large_mark` of the frame has to be fuller: the outline of a large still thing is hollow.
    min_mark_fill: float = 0.2
    min_mark_contrast: float = 9.0
    max_mark_around: float = 0.15
    min_mark_present: float = 0.7  # of the frames probed: a thing of the scene that comes to rest is there for fewer
    large_mark: float = 0.045
    min_large_mark_fill: float = 0.42
    # Judges of yours: the folder of an image classification model as transformers saves it, and which label's chance is
    # compared (of a model with one output that itself), the mean over a few frames. An empty folder: not asked.
    classifier_frames: int = 3
    watermark_model: str = ""
    watermark_label: str = "watermark"
    max_watermark_chance: float = 0.5
    aesthetic_model: str = ""
    aesthetic_label: str = "aesthetic"
    min_aesthetic_model_score: float = 0.5
    # The publisher's own aesthetic score (InternVid's is LAION's predictor's, 1 to 10; LAION-Aesthetics begins at 4.5).
    min_aesthetic_score: float = 0.0  # 0: not asked
    # Semantic alignment: cosine of centred class-name and caption embeddings. Of 88 real pairs none is below -0.05 (the
    # lowest is -0.03), of their captions given to other clips 29 %; at 0 it is 1 and 44 %, at 0.05 it is 3 and 59 %.
    min_semantic_score: float = -0.05
    alignment_frames: int = 3
    # Another judge of alignment: the folder of a CLIP or SigLIP model or of a release, or a score of the listing, such
    # as matching_score or umt_sim. CLIP cosines of pictures and their captions lie around 0.3 (LAION-400M kept those
    # over 0.3, arXiv 2111.02114), SigLIP's and publishers' scores elsewhere: look at the report before you choose.
    align_model: str = ""
    align_column: str = ""
    min_align_score: float = 0.2
    # Share of a frame's pixels that a named colour must cover in some frame to be called visible: codec noise and
    # blended edges reach 0.005 on generated clips, whose things cover 0.02; of 88 real captions none fails at 0.02.
    min_colour_share: float = 0.006
    min_colour_grounding: float = 0.5  # share of a caption's colour words that must be visible
    # Near duplicates: likeness of the worst moments and of the ground. Of copies of 88 real and 160 generated clips
    # (another encoding, a third of the size, a tenth cut off, 1.1 times the speed) 99 % have more; of other pairs none.
    min_duplicate_likeness: float = 0.64
    # Balance: a concept that more captions say draws a share of them, and a pair that none of its concepts draws is
    # dropped (MetaCLIP, arXiv 2309.16671; its cap is 20,000 for 400 M pairs). Concepts are phrases in a file, one a
    # line; without it every word of the captions.
    max_per_concept: int = 0  # 0: not balanced
    concepts: str = ""
    # Share of sources held out where a pair does not say its split.
    heldout_share: float = 0.1
    vocabulary: int = 4096
    report_pictures: int = 8

    def __post_init__(self) -> None:
        unknown = [step for step in self.steps if step not in ALL_STEPS]
        if unknown:
            raise ConfigError("curate.steps", unknown[0], "is not a step of curation", ALL_STEPS)
        if self.preset and self.preset not in PRESETS:
            raise ConfigError("curate.preset", self.preset, "is not the name of a published subset", PRESETS)
        if self.split_shots and self.split_shots not in SHOT_DETECTORS:
            raise ConfigError("curate.split_shots", self.split_shots, "is no way to find shots", SHOT_DETECTORS)
        self._check_download()
        if self.align_model and self.align_column:
            raise ConfigError("curate.align_column", self.align_column, "cannot be asked beside curate.align_model")
        if not 0 < self.min_clip_seconds < self.max_clip_seconds:
            why = f"must be over 0 and below curate.max_clip_seconds ({self.max_clip_seconds:g})"
            raise ConfigError("curate.min_clip_seconds", self.min_clip_seconds, why)
        if not 0 <= self.heldout_share < 1:
            raise ConfigError("curate.heldout_share", self.heldout_share, "must be at least 0 and below 1")
        if self.max_per_concept < 0 or (self.concepts and not self.max_per_concept):
            raise ConfigError(
                "curate.max_per_concept", self.max_per_concept, "must be over 0 where curate.concepts is set"
            )
        whole = ("max_frames", "short_side", "decode_memory_mb", "unit_pairs", "unit_memory_mb", "vocabulary")
        downloads = ("max_download_mb", "download_seconds", "download_workers")
        for name in ("fps", "decode_seconds", "unit_seconds", *whole, *downloads):
            if getattr(self, name) <= 0:
                raise ConfigError(f"curate.{name}", getattr(self, name), "must be over 0")

    def _check_download(self) -> None:
        if self.download not in DOWNLOADS and not HOOK_RULE.fullmatch(self.download):
            rule = "is no way to fetch a video, nor the module:function of one of yours"
            raise ConfigError("curate.download", self.download, rule, DOWNLOADS)
        for host in self.hosts:
            if not HOST_RULE.fullmatch(host):
                rule = "is no name of a host; write www.example.com, or *.example.com for every host below"
                raise ConfigError("curate.download_hosts", host, rule)
        if self.download != "off" and not self.hosts:
            raise ConfigError(
                "curate.download_hosts", "", f"must name the hosts that curate.download={self.download} asks"
            )
        if self.download_sections and (self.download != "yt-dlp" or self.split_shots):
            rule = "needs curate.download=yt-dlp, and no curate.split_shots, which looks through whole videos"
            raise ConfigError("curate.download_sections", True, rule)
        if self.download != "off" and self.download_seconds >= self.unit_seconds:
            why = f"must be below curate.unit_seconds ({self.unit_seconds:g}), after which a silent unit is given up"
            raise ConfigError("curate.download_seconds", self.download_seconds, why)
        if self.split_shots and not self.keep_downloads:
            raise ConfigError(
                "curate.keep_downloads", False, "must be true with curate.split_shots: videos are read twice"
            )

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that may be asked."""
        return tuple(filter(None, (host.strip().lower() for host in self.download_hosts.split(","))))

    def runs(self, step: str) -> bool:
        """Whether a step is on: those of `steps`, those that always are, and those that a setting of their own asks."""
        asked = {
            "aesthetics": self.min_aesthetic_score > 0,
            "download": True,
            "decode": True,
            "watermark_model": bool(self.watermark_model),
            "aesthetic_model": bool(self.aesthetic_model),
            "templates": "captions" in self.steps,
            "balance": self.max_per_concept > 0,
        }
        return asked.get(step, step in self.steps)

    @property
    def processes(self) -> int:
        """Child processes that decode."""
        return self.workers or len(os.sched_getaffinity(0))

    def signature(self, *names: str) -> str:
        """Short hash of the named settings: scores made under others are not reused."""
        values = {name: getattr(self, name) for name in names or [f.name for f in dataclasses.fields(self)]}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)


def settings_from(assignments: list[str], preset: str = "") -> CurateSettings:
    """The defaults with `curate.field=value` overrides. Raises ConfigError naming the setting and the valid ones."""
    values: dict[str, Any] = {"preset": preset}
    steps: tuple[str, ...] = STEPS
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        field = name.removeprefix("curate.")
        if not equals or field == name:
            raise ConfigError(name, text, "an override of curation is written curate.field=value")
        if field == "steps":
            steps = tuple(filter(None, text.split(",")))
        else:
            values[field] = text if field in TEXTS else _plain(text)
    settings: CurateSettings = from_dict(values, CurateSettings, "curate.")
    return dataclasses.replace(settings, steps=steps)


def _plain(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@dataclass(frozen=True, slots=True)
class Decision:
    """What a step answers: keep (no reason), or drop with a reason code; `scores` go to the lineage."""

    step: str
    reason: str | None = None
    scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    detail: str = ""

    @property
    def keep(self) -> bool:
        """Whether the step keeps the pair."""
        return self.reason is None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"step": self.step, "reason": self.reason, "scores": self.scores, "detail": self.detail}
