"""The proof of a release: fresh processes load it, with this program and without, and compute the same bits."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import xgenvideo
from xgenvideo.data.tokenizer import CAPTION_END
from xgenvideo.errors import ReleaseError
from xgenvideo.infer.probe import FRAMES, TOKENS
from xgenvideo.models.video_lm import VideoLM

CHECK_SECONDS = 3600
STRANGER = Path(__file__).parent / "hub" / "fresh_load.py"


def check_fresh(folder: Path, expected: str) -> None:
    """Load a release by this program in a process of its own; `expected` is `logits_digest`. Raises ReleaseError."""
    package = str(Path(xgenvideo.__file__).parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    command = ["-m", "xgenvideo.infer.probe", str(folder), str(torch.get_num_threads())]
    found = _fresh(folder, command, {"PYTHONPATH": os.pathsep.join(paths)}).strip()
    if found != expected:
        raise ReleaseError(
            f"{folder}: a fresh process computes other logits ({found[:12]}) than the trained model ({expected[:12]}); "
            "nothing was released"
        )


def check_stranger(folder: Path, probe: dict[str, Tensor]) -> None:
    """Load a release by transformers alone, in a process that has no xgenvideo. Raises ReleaseError.

    Every weight must be used, none made up, and the logits and both embeddings must equal those of `probe`, made by
    `probe_tensors`, bit for bit.
    """
    with tempfile.TemporaryDirectory(prefix="xgv-check-") as scratch:
        save_file(probe, file := Path(scratch) / "probe.safetensors")
        command = ["-P", str(STRANGER), str(folder), str(file), str(torch.get_num_threads())]
        # The release's code is copied below HF_HOME to be imported: not among the user's own.
        own = {"HF_HOME": scratch, "HF_MODULES_CACHE": f"{scratch}/modules", "HF_HUB_OFFLINE": "1"}
        report = json.loads(_fresh(folder, command, own).strip().splitlines()[-1])
    wrong = {name: values[:5] for name, values in report.items() if values}
    if wrong:
        raise ReleaseError(f"{folder}: transformers does not get the trained model out of it: {wrong}; not released")


@torch.inference_mode()
def probe_tensors(model: VideoLM) -> dict[str, Tensor]:
    """One made-up clip, text and caption, and the logits and embeddings that `model` computes for them."""
    config, device = model.config, model.logit_scale.device
    random = torch.Generator().manual_seed(0)
    size = config.vision.image_size
    frames = torch.randint(0, 256, (1, FRAMES, 3, size, size), generator=random, dtype=torch.uint8)
    tokens, caption = torch.randint(CAPTION_END + 1, config.decoder.vocab, (2, 1, TOKENS), generator=random)
    caption[:, -2] = CAPTION_END
    pts = torch.arange(FRAMES, dtype=torch.float32)[None] / 2
    given = {"frames": frames, "tokens": tokens, "caption": caption, "pts": pts}
    frames, tokens, caption, pts = (given[name].to(device) for name in ("frames", "tokens", "caption", "pts"))
    positions, documents = torch.arange(TOKENS, device=device)[None], torch.zeros_like(tokens)
    latents = model.latents(model.encode_frames(frames), pts, torch.ones_like(pts, dtype=torch.bool))
    found = {
        "logits": model.logits(tokens, positions, documents, latents, torch.ones_like(tokens, dtype=torch.bool)),
        "text": model.text_embedding(caption, positions, documents, torch.tensor([TOKENS - 2], device=device)),
        "video": model.video_embedding(latents),
    }
    return {name: part.cpu().clone(memory_format=torch.contiguous_format) for name, part in (given | found).items()}


def _fresh(folder: Path, command: list[str], environment: dict[str, str]) -> str:
    """What Python prints when it runs `command`. Raises ReleaseError where it fails."""
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
        env=os.environ | environment,
        check=False,
    )
    if done.returncode:
        raise ReleaseError(f"{folder}: a fresh process cannot load what was written: {done.stderr.strip()[-1000:]}")
    return done.stdout
