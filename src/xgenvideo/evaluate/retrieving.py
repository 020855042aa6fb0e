"""Retrieval and captions over annotated videos: raw cosine, dual softmax and re-ranked scores, always apart."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xgenvideo.data.text import caption_document
from xgenvideo.errors import DataError
from xgenvideo.evaluate.caption_scores import caption_scores
from xgenvideo.evaluate.formats.captioned import Captioned
from xgenvideo.evaluate.metrics import RECALL_AT, bootstrap, dual_softmax, retrieval
from xgenvideo.evaluate.videos import Videos, video_vector, window_latents
from xgenvideo.infer.embed import embed_text
from xgenvideo.infer.generate import caption_prompt, generate
from xgenvideo.infer.likelihood import log_likelihoods
from xgenvideo.infer.release import NEW_TOKENS, Release

CONSIDERED = 16
PROTOCOL = {
    "cosine": "cosine of the text's and the video's embedding; uses nothing else",
    "dual_softmax": "cosine times its softmax over all queries, at the model's temperature; uses the whole test set's "
    "queries to answer each, so it says what a closed test set allows, not what a search would find",
    "reranked": f"the {CONSIDERED} nearest by cosine ordered by scaled cosine plus log p(text | video) - log p(text) "
    "of the decoder; uses one query at a time and a pass of the decoder for each of them",
    "ranks": "a wrong item with the same score counts as before the right one; each text is a query of its own, and "
    "any text of a video is right for it",
    "video": "the mean of its windows' unit vectors; the decoder reads all windows' latents",
}
Floats = NDArray[np.float64]
Results = dict[str, Any]


@dataclass
class Pool:
    """What was read: a vector and latents [1 W*Q Dr] a video, the texts, and the number of each text's video."""

    names: list[str] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)


def retrieve(release: Release, described: Sequence[Captioned], videos: Videos, seed: int = 0) -> Results:
    """Both directions by each score, and captions of the videos against their texts, as JSON values.

    Raises DataError where no video could be read.
    """
    pool = Pool()
    for one in described:
        video = videos.open(release, one.video)
        if video is None:
            continue
        pool.owners += [len(pool.names)] * len(one.texts)
        pool.texts += one.texts
        pool.names.append(one.video)
        pool.vectors.append(video_vector(release, video))
        pool.latents.append(window_latents(release, video).flatten(0, 1)[None].cpu())
    if not pool.names:
        raise DataError(
            f"{videos.folder}: none of {len(described)} videos can be read; "
            f"the first looked for are {[one.video for one in described[:3]]}"
        )
    results: Results = {"videos": videos.summary(len(described)), "protocol": PROTOCOL, "intervals": {}}
    limit = release.config.data.text_tokens - 3
    results["texts"] = {
        "read": len(pool.texts),
        "cut_to_the_length_of_training": sum(len(release.tokenizer.encode(text)) > limit for text in pool.texts),
    }
    for name, by_text, by_video in scores(release, pool):
        _add(results, f"{name}/text_to_video", by_text, np.array(pool.owners), np.arange(len(pool.names)), pool, seed)
        _add(results, f"{name}/video_to_text", by_video, np.arange(len(pool.names)), np.array(pool.owners), pool, seed)
    return results | {"captions": _captions(release, pool)}


def scores(release: Release, pool: Pool) -> list[tuple[str, Floats, Floats]]:
    """Name of each score with its matrices: texts by videos [N M], and videos by texts [M N]; a row is a query."""
    texts = np.stack([embed_text(release, text) for text in pool.texts])
    cosines = (texts @ torch.stack(pool.vectors).numpy().T).astype(np.float64)
    scale = float(release.model.logit_scale.detach().exp())
    near = _nearest(cosines) | _nearest(cosines.T).T
    joint = scale * cosines + _likelihood_ratios(release, pool, near)
    # What is not looked at again stays behind all that is, in its own order.
    behind = cosines + float(joint[near].min()) - 4.0
    return [
        ("cosine", cosines, cosines.T),
        ("dual_softmax", dual_softmax(cosines, scale), dual_softmax(cosines.T, scale)),
        (
            "reranked",
            np.where(_nearest(cosines), joint, behind),
            np.where(_nearest(cosines.T), joint.T, behind.T),
        ),
    ]


def _nearest(cosines: Floats) -> NDArray[np.bool_]:
    """True for the `CONSIDERED` items nearest to each query (a row)."""
    chosen = np.zeros(cosines.shape, dtype=bool)
    best = np.argsort(-cosines, axis=1, kind="stable")[:, :CONSIDERED]
    np.put_along_axis(chosen, best, True, axis=1)
    return chosen


def _likelihood_ratios(release: Release, pool: Pool, near: NDArray[np.bool_]) -> Floats:
    """log p(text | video) - log p(text) in nats [N M] for the chosen pairs, zero elsewhere."""
    documents = [caption_document(text, release.tokenizer, release.config.data.text_tokens) for text in pool.texts]
    alone = np.array(log_likelihoods(release.model, documents, None, [0] * len(documents)))
    ratios = np.zeros(near.shape)
    device = release.model.logit_scale.device
    for video, latents in enumerate(pool.latents):
        chosen = np.flatnonzero(near[:, video])
        given = log_likelihoods(release.model, [documents[i] for i in chosen], latents.to(device), [0] * len(chosen))
        ratios[chosen, video] = np.array(given) - alone[chosen]
    return ratios


def _add(
    results: Results,
    name: str,
    matrix: Floats,
    groups: NDArray[np.int64],
    items: NDArray[np.int64],
    pool: Pool,
    seed: int,
) -> None:
    """R@1, R@5, R@10 with intervals that resample whole videos, median rank, and R@1 of a random order."""
    found = retrieval(matrix, groups, items)
    clusters = [pool.names[group] for group in groups]
    for k in RECALL_AT:
        estimate = bootstrap((found.ranks <= k).astype(float).tolist(), clusters, seed)
        results[f"{name}_r{k}"], results["intervals"][f"{name}_r{k}"] = estimate.mean, [estimate.low, estimate.high]
    results[f"{name}_median_rank"] = found.median_rank
    results[f"{name}_chance_r1"] = found.chance_r1


def _captions(release: Release, pool: Pool) -> Results:
    """Greedy captions of the videos against all of their texts."""
    written = []
    for latents in pool.latents:
        on_device = latents.to(release.model.logit_scale.device)
        ids = generate(release.model, release.tokenizer, on_device, [caption_prompt()], NEW_TOKENS)
        written.append(release.tokenizer.decode(ids[0]).strip())
    references: list[list[str]] = [[] for _ in pool.names]
    for text, owner in zip(pool.texts, pool.owners, strict=True):
        references[owner].append(text)
    return caption_scores(written, references) | {"greedy": dict(zip(pool.names, written, strict=True))}
