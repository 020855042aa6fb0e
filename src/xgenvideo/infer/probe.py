"""A fingerprint of what a model computes, to compare processes: python -m xgenvideo.infer.probe RELEASE [THREADS]."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from xgenvideo.models.video_lm import VideoLM

FRAMES, TOKENS = 5, 12


@torch.inference_mode()
def logits_digest(model: VideoLM) -> str:
    """SHA-256 over the bits of logits and both embeddings for one fixed made-up clip and text.

    The same weights give the same bits on one machine with one number of threads; elsewhere sums may round otherwise.
    """
    config, device = model.config, model.logit_scale.device
    random = torch.Generator().manual_seed(0)
    size = config.vision.image_size
    frames = torch.randint(0, 256, (1, FRAMES, 3, size, size), generator=random, dtype=torch.uint8).to(device)
    tokens = torch.randint(0, config.decoder.vocab, (1, TOKENS), generator=random).to(device)
    positions, documents = torch.arange(TOKENS, device=device)[None], torch.zeros_like(tokens)
    pts = torch.arange(FRAMES, device=device)[None] / 2
    seen = torch.ones_like(tokens, dtype=torch.bool)
    training = model.training
    model.eval()
    latents = model.latents(model.encode_frames(frames), pts, torch.ones_like(pts, dtype=torch.bool))
    logits, text = model(tokens, positions, documents, torch.tensor([TOKENS - 1], device=device), latents, seen)
    digest = hashlib.sha256()
    for part in (logits, text, model.video_embedding(latents)):
        digest.update(_bits(part))
    model.train(training)
    return digest.hexdigest()


def weights_digest(model: VideoLM) -> str:
    """SHA-256 over names, shapes and bits of all weights: equal for equal models on every machine."""
    return tensors_digest(sorted(model.state_dict().items()))


def tensors_digest(named: Iterable[tuple[str, Tensor]]) -> str:
    """`weights_digest` of tensors that come one at a time, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bits(tensor))
    return digest.hexdigest()


def _bits(tensor: Tensor) -> bytes:
    content: bytes = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return content


def main() -> None:
    """Print the digest of the release named on the command line, then the number of threads it was computed with."""
    from xgenvideo.infer.release import load_release

    folder = Path(sys.argv[1])
    if len(sys.argv) > 2:
        torch.set_num_threads(int(sys.argv[2]))
    print(logits_digest(load_release(folder).model))


if __name__ == "__main__":
    main()
