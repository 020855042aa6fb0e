"""The videos of a benchmark: found below a folder by their annotated names, encoded once, and none lost silently."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from xgenvideo.data.dataset import sha256_of
from xgenvideo.errors import DataError, MediaError
from xgenvideo.evaluate.controls import FULL, arranged, seeded
from xgenvideo.infer.release import Release
from xgenvideo.infer.search import find_videos


@dataclass
class Videos:
    """Videos below a folder, and what became of those that were asked for: SHA-256, or why there is none."""

    folder: Path
    read: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: is not a folder; name the folder with the benchmark's videos")
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        for path in find_videos(self.folder):
            for name in {path.name, path.stem}:
                self._by_name[name].append(path)

    def open(self, release: Release, name: str) -> "Encoded | None":
        """The encoded video of an annotated name; None where it is noted as missing or unreadable."""
        found = self._find(name)
        if len(found) != 1:
            self.missing[name] = f"{len(found)} files have this name" if found else "no such file"
            return None
        try:
            encoded = encode(release, found[0])
        except MediaError as error:
            self.unreadable[name] = error.reason
            return None
        self.read[name] = sha256_of(found[0])
        return encoded

    def _find(self, name: str) -> list[Path]:
        """By the whole annotated path if files end in it, else by its last part, with or without an ending."""
        wanted = PurePosixPath(name.strip().lstrip("./"))
        # ActivityNet's names begin with v_, which downloaders leave out.
        for last in dict.fromkeys((wanted.name, wanted.name.removeprefix("v_"))):
            found = self._by_name.get(last) or self._by_name.get(PurePosixPath(last).stem) or []
            exact = [path for path in found if path.as_posix().endswith("/" + str(wanted.with_name(last)))]
            if found:
                return exact or found
        return []

    def summary(self, annotated: int) -> dict[str, object]:
        """How many of how many, and every one that is not among them, as JSON values."""
        return {
            "annotated": annotated,
            "read": len(self.read),
            "missing": self.missing,
            "unreadable": self.unreadable,
            "said": f"{len(self.read)} of {annotated} videos read, {len(self.missing)} missing, "
            f"{len(self.unreadable)} unreadable",
        }


@dataclass(frozen=True, repr=False)
class Encoded:
    """Every sampled frame of a video. features [F P Wv] on the CPU, pts [F] seconds, ascending."""

    features: Tensor
    pts: Tensor

    def part(self, start: float | None, end: float | None) -> "Encoded":
        """The frames between two times in seconds, their clock starting anew. Raises MediaError where there is none."""
        if start is None and end is None:
            return self
        first = 0.0 if start is None else start
        inside = (self.pts >= first) & (self.pts <= (float("inf") if end is None else end))
        if not bool(inside.any()):
            raise MediaError("too_short", "video", f"no frame between {start} s and {end} s")
        return Encoded(self.features[inside], self.pts[inside] - first)

    def __repr__(self) -> str:
        return f"Encoded(features={list(self.features.shape)}, seconds={float(self.pts[-1]):.1f})"


@torch.inference_mode()
def encode(release: Release, path: Path) -> Encoded:
    """A whole video at the release's rate, decoded once. Raises MediaError."""
    device = release.model.logit_scale.device
    features, pts = [], []
    for window in release.windows(path):
        features.append(release.model.encode_frames(window.frames.to(device)).cpu())
        pts.append(window.pts)
    return Encoded(torch.cat(features), torch.cat(pts))


@torch.inference_mode()
def window_latents(release: Release, video: Encoded, control: str = FULL, name: str = "", seed: int = 0) -> Tensor:
    """Latents [W Q Dr] of the windows of a video under a control; `name` and `seed` decide the shuffled order."""
    order = seeded(name, seed).permutation(len(video.pts)) if control == "shuffled" else None
    features, pts = arranged(video.features, video.pts, control, order)
    length, device = release.config.data.frames, release.model.logit_scale.device
    latents = []
    for at in range(0, len(pts), length):
        part, seconds = features[None, at : at + length].to(device), pts[None, at : at + length].to(device)
        latents.append(release.model.latents(part, seconds, torch.ones_like(seconds, dtype=torch.bool)))
    return torch.cat(latents)


@torch.inference_mode()
def video_vector(release: Release, video: Encoded) -> Tensor:
    """Unit vector [E] of a video: the mean of its windows' unit vectors, made of length 1 again.

    Each window's clock starts at its own beginning, as in the clips that the contrastive loss was trained on.
    """
    length = release.config.data.frames
    vectors = []
    for at in range(0, len(video.pts), length):
        window = Encoded(video.features[at : at + length], video.pts[at : at + length] - video.pts[at])
        vectors.append(release.model.video_embedding(window_latents(release, window))[0].float().cpu())
    return torch.nn.functional.normalize(torch.stack(vectors).mean(dim=0), dim=0)
