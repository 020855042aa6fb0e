"""Reading a release: every file's SHA-256 is compared before any is used, weights come from safetensors only."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xgenvideo import config as configs
from xgenvideo.config import RunConfig
from xgenvideo.data import tokenizer as tokenizers
from xgenvideo.data.dataset import sha256_of
from xgenvideo.data.frames import fit_square
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.data.video import sample_windows
from xgenvideo.errors import ConfigError, DataError, ReleaseError
from xgenvideo.infer.generate import caption_prompt, generate, question_ids
from xgenvideo.infer.likelihood import log_likelihoods, option_documents
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.records import SampledVideo

FORMAT, VERSION = "xgenvideo-release", 2
DESCRIPTION = "release.json"
INDEX = "model.safetensors.index.json"
# config.json is transformers'; the run's own config is beside it.
CONFIG, TOKENIZER, PROCESSOR = "run.json", "tokenizer.json", "processor_config.json"
REQUIRED = (INDEX, CONFIG, TOKENIZER, PROCESSOR)
# As in curation: what the frames of the training shards are reduced to before the encoder's size.
SHORT_SIDE = 256
NEW_TOKENS = 64
Sample = Callable[[Path, float, int, int | None], Iterator[SampledVideo]]
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")


@dataclass(frozen=True, repr=False)
class Window:
    """Consecutive frames of a video. frames [F 3 S S] uint8, pts [F] float32 seconds from the start of the video."""

    start: float
    frames: Tensor
    pts: Tensor

    def __repr__(self) -> str:
        return f"Window(start={self.start:.1f}, frames={list(self.frames.shape)})"


@dataclass(frozen=True, repr=False)
class Watched:
    """What is kept of a video. latents [W Q Dr] of its windows, and the seconds that each spans."""

    latents: Tensor
    spans: tuple[tuple[float, float], ...]

    @property
    def together(self) -> Tensor:
        """Latents [1 W*Q Dr], one window after the other: what the decoder reads."""
        return self.latents.flatten(0, 1)[None]

    def __repr__(self) -> str:
        return f"Watched(latents={list(self.latents.shape)}, seconds={self.spans[-1][1]:.1f})"


@dataclass(frozen=True, repr=False)
class Release:
    """A loaded release. `description` is release.json: hashes and the run's figures."""

    folder: Path
    model: VideoLM
    tokenizer: Tokenizer
    config: RunConfig
    processor: dict[str, Any]
    description: dict[str, Any]

    @property
    def identity(self) -> str:
        """SHA-256 over the hashes of all files: what names this release in caches."""
        return str(self.description["identity"])

    def __repr__(self) -> str:
        return f"Release({self.folder}, name={self.config.name}, identity={self.identity[:12]})"

    def windows(self, video: Path, sample: Sample = sample_windows) -> Iterator[Window]:
        """Windows of `data.frames` frames at `data.fps`, one after the other, each with its own start time.

        The file is decoded once, by `sample`: `Decoders.windows` reads a stranger's file in a child process. Raises
        MediaError with a reason code for a file that cannot be read.
        """
        data = self.config.data
        taken = sample(video, data.fps, data.frames, int(self.processor["short_side"]))
        for number, window in enumerate(taken):
            yield self.window(number, window)

    def window(self, number: int, taken: SampledVideo) -> Window:
        """A video's window of that number, its frames made as large as the encoder takes."""
        start = number * self.config.data.frames / self.config.data.fps
        size = self.config.model.vision.image_size
        squares = np.stack([fit_square(frame, size) for frame in taken.frames])
        frames = torch.from_numpy(np.ascontiguousarray(squares.transpose(0, 3, 1, 2)))
        return Window(start, frames, torch.from_numpy(taken.pts).float())

    @torch.inference_mode()
    def window_latents(self, window: Window, from_start: bool = True) -> Tensor:
        """Latents [1 Q Dr] of one window; its times count from the start of the video, or from the window's own."""
        return self._latents(self._features(window), window.pts if from_start else window.pts - window.start)

    @torch.inference_mode()
    def read_window(self, window: Window) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [1 Q Dr] with the video's times, the unit vector [E] with the window's own, and the features
        [F P Wv] of its frames, which are encoded once.
        """
        features = self._features(window)
        latents = self._latents(features, window.pts)
        own = self._latents(features, window.pts - window.start) if window.start else latents
        return latents, self.model.video_embedding(own)[0], features[0]

    def _features(self, window: Window) -> Tensor:
        return self.model.encode_frames(window.frames.to(self.model.logit_scale.device))[None]

    def _latents(self, features: Tensor, pts: Tensor) -> Tensor:
        mask = torch.ones((1, len(pts)), dtype=torch.bool, device=features.device)
        return self.model.latents(features, pts.to(features.device)[None], mask)

    def span(self, window: Window) -> tuple[float, float]:
        """The seconds that a window's frames stand for."""
        return float(window.pts[0]), float(window.pts[-1]) + 1 / self.config.data.fps

    def watch(self, video: Path) -> "Watched":
        """A whole video, decoded once: only the latents of its windows are kept."""
        latents, spans = [], []
        for window in self.windows(video):
            latents.append(self.window_latents(window))
            spans.append(self.span(window))
        return Watched(torch.cat(latents), tuple(spans))

    def latents(self, video: Path) -> Tensor:
        """Latents [1 W*Q Dr] of a whole video: those of its W windows after each other."""
        return self.watch(video).together

    def generate(
        self,
        video: Path,
        prompt: str = "",
        max_new_tokens: int = NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> str:
        """The answer to `prompt` about a video, or a caption for an empty prompt.

        Raises ConfigError for a prompt longer than a training text, MediaError for a video that cannot be read.
        """
        ids = self.prompt_ids(prompt)
        latents = self.latents(video)
        written = generate(self.model, self.tokenizer, latents, [ids], max_new_tokens, temperature, top_p, seed)
        return self.tokenizer.decode(written[0]).strip()

    def prompt_ids(self, prompt: str) -> list[int]:
        """What an answer to `prompt` is written after; a caption for an empty one. Raises ConfigError if too long."""
        ids = question_ids(prompt, self.tokenizer) if prompt.strip() else caption_prompt()
        if len(ids) > self.config.data.text_tokens:
            rule = f"must be at most {self.config.data.text_tokens} tokens, the length of a training text"
            raise ConfigError("prompt", f"{prompt[:60]}... ({len(ids)} tokens)", rule)
        return ids

    def caption(self, video: Path) -> str:
        """The likeliest caption, token by token."""
        return self.generate(video)

    def answer(self, video: Path, question: str) -> str:
        """The likeliest answer, token by token. Raises ConfigError for an empty question."""
        if not question.strip():
            raise ConfigError("question", question, "must not be empty; `caption` describes a video without one")
        return self.generate(video, question)

    def score_options(self, latents: Tensor, question: str, options: Sequence[str]) -> list[float]:
        """Log-likelihood (nats) of each option as the answer, given latents [1 Q Dr] of one video."""
        documents = option_documents(question, options, self.tokenizer)
        return log_likelihoods(self.model, documents, latents, [0] * len(documents))


def load_release(folder: Path, device: str | torch.device = "cpu") -> Release:
    """Verify and load a release folder. Raises ReleaseError naming the file, what is wrong with it and the cure;
    ConfigError for a device that is not here.
    """
    folder = Path(folder)
    description = verify(folder)
    try:
        config = configs.load(folder / CONFIG)
        tokenizer = tokenizers.load(folder / TOKENIZER)
    except (ConfigError, DataError) as error:
        raise ReleaseError(f"{folder}: does not fit this version of the program: {error}") from error
    processor = read_json(folder / PROCESSOR)
    if not isinstance(processor.get("short_side"), int):
        raise ReleaseError(f"{folder / PROCESSOR}: short_side is {processor.get('short_side')!r}, it must be pixels")
    with torch.random.fork_rng(devices=[]):
        model = VideoLM(config.model)
    _fill(model, _read_weights(folder, description), folder)
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError("device", str(device), f"cannot be used here ({error})") from error
    return Release(folder, model.eval(), tokenizer, config, processor, description)


def verify(folder: Path) -> dict[str, Any]:
    """release.json of a folder whose every listed file has the listed SHA-256. Raises ReleaseError."""
    description = read_json(folder / DESCRIPTION)
    found = (description.get("format"), description.get("version"))
    if found != (FORMAT, VERSION):
        raise ReleaseError(f"{folder / DESCRIPTION}: format and version are {found}, this reads {(FORMAT, VERSION)}")
    files = description.get("files")
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise ReleaseError(f"{folder / DESCRIPTION}: lists no files; download the release again")
    missing = [name for name in REQUIRED if name not in files]
    unsafe = [name for name in files if not _NAME.fullmatch(name)]
    if missing or unsafe:
        raise ReleaseError(f"{folder / DESCRIPTION}: lacks {missing}, and may not list {unsafe}: download it again")
    for name, entry in files.items():
        path = folder / name
        sha256 = sha256_of(path) if path.is_file() else "no such file"
        if sha256 != entry.get("sha256"):
            raise ReleaseError(
                f"{path}: SHA-256 is {sha256}, {DESCRIPTION} says {entry.get('sha256')}. "
                "The file is damaged, missing or was changed; nothing of this release is used. Download it again"
            )
    if description.get("identity") != identity_of(files):
        raise ReleaseError(f"{folder / DESCRIPTION}: identity does not fit its hashes; it was edited")
    return description


def identity_of(files: dict[str, dict[str, Any]]) -> str:
    """One SHA-256 over the names and hashes of the files."""
    return hashlib.sha256(json.dumps({name: files[name]["sha256"] for name in sorted(files)}).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ReleaseError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ReleaseError(f"{path}: no such file; is this a release folder? `xgv export` writes one") from error
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path}: cannot be read as JSON ({error}); download the release again") from error
    if not isinstance(values, dict):
        raise ReleaseError(f"{path}: must be a JSON object; download the release again")
    return values


def _read_weights(folder: Path, description: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor by name, from the shards that the index names."""
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ReleaseError(f"{folder / INDEX}: has no weight_map; download the release again")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        if shard not in description["files"] or not str(shard).endswith(".safetensors"):
            raise ReleaseError(f"{folder / INDEX}: names {shard!r}, which {DESCRIPTION} does not list")
        try:
            tensors = load_file(folder / shard)
        except SafetensorError as error:
            raise ReleaseError(f"{folder / shard}: is not a safetensors file ({error})") from error
        expected = {name for name, place in weight_map.items() if place == shard}
        if set(tensors) != expected:
            raise ReleaseError(f"{folder / shard}: holds other tensors than {INDEX} says: {set(tensors) ^ expected}")
        state |= tensors
    return state


def _fill(model: VideoLM, state: dict[str, Tensor], folder: Path) -> None:
    """Put the tensors into the model, bit for bit: every name, every shape, nothing left over.

    Copies, because memory mapped from a file starts where the file's header ends, and a product of a matrix and a
    vector whose memory is not aligned may be summed in another order.
    """
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    misfit = sorted(name for name in own.keys() & state.keys() if own[name] != state[name].shape)
    if missing or unexpected or misfit:
        raise ReleaseError(
            f"{folder}: the weights do not fit {CONFIG}: missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"of another shape {misfit[:5]}"
        )
    model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
