"""How likely a model finds given texts about given videos: what options, captions and twins are compared by."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from xgenvideo.data.text import IGNORED, Document, pack_documents, question_document
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.models.video_lm import VideoLM

ROWS = 64


@torch.inference_mode()
def log_likelihoods(
    model: VideoLM,
    documents: Sequence[Document],
    latents: Tensor | None,
    videos: Sequence[int],
    rows: int = ROWS,
) -> list[float]:
    """Sum of the log-probabilities (nats) of each document's predicted tokens, <|eos|> among them.

    latents [V Q Dr], document i being about video `videos[i]`; None: the model sees no video. The sum is not divided by
    the length: it is the probability of the whole answer, which is what training fits. Documents of similar length are
    batched, `rows` at a time.
    """
    order = sorted(range(len(documents)), key=lambda i: len(documents[i].ids))
    found = [0.0] * len(documents)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        seen = None if latents is None else latents[[videos[i] for i in chosen]]
        for i, value in zip(chosen, _sums(model, [documents[i] for i in chosen], seen), strict=True):
            found[i] = value
    return found


def option_documents(question: str, options: Sequence[str], tokenizer: Tokenizer) -> list[Document]:
    """One document for each option: the prompt, then the option, which alone is scored."""
    return [question_document(question, option, tokenizer) for option in options]


def _sums(model: VideoLM, documents: Sequence[Document], latents: Tensor | None) -> list[float]:
    """Log-likelihoods of one batch; latents [B Q Dr] or None."""
    device = model.logit_scale.device
    length = max(len(document.ids) for document in documents)
    packed = [pack_documents([document], length, 0, 0) for document in documents]
    tokens, targets, numbers, positions = (
        torch.from_numpy(np.stack([getattr(text, name) for text in packed])).to(device)
        for name in ("tokens", "targets", "documents", "positions")
    )
    logits = model.logits(tokens, positions, numbers, latents, numbers >= 0)
    scored = targets != IGNORED
    chosen = logits.float().log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    sums: list[float] = (chosen.double() * scored).sum(dim=1).tolist()
    return sums
