"""The unit vector of a text, comparable with those of videos by their inner product."""

import numpy as np
import torch
from numpy.typing import NDArray

from xgenvideo.data.text import caption_document, pack_documents
from xgenvideo.infer.release import Release

Vectors = NDArray[np.float32]


@torch.inference_mode()
def embed_text(release: Release, text: str) -> Vectors:
    """Unit vector [E] of a text, embedded as captions are."""
    document = caption_document(text, release.tokenizer, release.config.data.text_tokens)
    packed = pack_documents([document], len(document.ids), len(document.ids) - 2, 0)
    device = release.model.logit_scale.device
    tokens, positions, numbers = (
        torch.from_numpy(part)[None].to(device) for part in (packed.tokens, packed.positions, packed.documents)
    )
    end = torch.tensor([packed.caption_end], device=device)
    found: Vectors = release.model.text_embedding(tokens, positions, numbers, end)[0].float().cpu().numpy()
    return found
