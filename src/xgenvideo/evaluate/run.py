"""Evaluate a model on a split of a dataset: `evaluate` gives the figures as JSON values, `table` prints them."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.features import FeatureCache
from xgenvideo.data.loader import check_inputs
from xgenvideo.data.text import caption_group
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError, DataError
from xgenvideo.evaluate.cider import cider
from xgenvideo.evaluate.controls import CONTROLS, FULL, pair_name
from xgenvideo.evaluate.measure import Point, Subject, Tally, measure, twin_captions
from xgenvideo.evaluate.metrics import RECALL_AT, Estimate, bootstrap, choose, dual_softmax, retrieval
from xgenvideo.evaluate.provenance import provenance
from xgenvideo.infer.probe import weights_digest
from xgenvideo.models.video_lm import VideoLM
from xgenvideo.objectives import contrastive_loss, sigmoid_contrastive_loss

# Questions whose right answer turns into a wrong one when the clip runs backwards.
REVERSIBLE_KINDS = ("direction", "order")
Results = dict[str, Any]


def evaluate(
    model: VideoLM,
    tokenizer: Tokenizer,
    dataset: Dataset,
    config: RunConfig,
    split: str = "heldout",
    cache: FeatureCache | None = None,
    limit: int | None = None,
    seed: int = 0,
    command: Sequence[str] = (),
) -> Results:
    """All figures over a split (its first `limit` clips) as JSON values; None where there is nothing to measure.

    `weights` names the model that was measured, so that a release cannot carry the figures of another one; `of` is the
    rest of what was measured on what, with the `command` as given.

    Options and captions are compared by the summed log-likelihood of their tokens. `seed` decides the permutations of
    the shuffled control and the bootstrap. Raises DataError for a split without a readable clip or a corrupt shard,
    ConfigError for a tokenizer that does not fit the model.
    """
    started = time.perf_counter()
    if limit is not None and limit < 1:
        raise ConfigError("limit", limit, "must be at least 1 clip")
    check_inputs(dataset, tokenizer, config, cache)
    rows = list(dataset.rows(split))[:limit]
    training = model.training
    model.eval()
    try:
        tally = measure(Subject(model, tokenizer, config, dataset, cache, seed), rows)
    finally:
        model.train(training)
    if not tally.rows:
        raise DataError(f"{dataset.folder}: no clip of the split {split!r} can be read; it has {dataset.counts}")
    results = {
        "weights": weights_digest(model),
        "split": split,
        "clips": len(tally.rows),
        "clips_skipped": tally.skipped,
    }
    results |= _losses(model, config, tally) | _choices(tally, seed) | _twins(tally, seed)
    results |= _retrieval(model, tally, seed) | _captions(tally, seed)
    intervals = {name: results.pop(f"{name}/interval") for name in list(results) if f"{name}/interval" in results}
    of = provenance(config, str(results["weights"]), {"dataset_sha256": dataset.fingerprint}, command)
    return results | {"intervals": intervals, "seconds": time.perf_counter() - started, "of": of}


def _losses(model: VideoLM, config: RunConfig, tally: Tally) -> Results:
    """Next-token loss a predicted token; contrastive loss over pools of the training's global batch size."""
    if not tally.loss_tokens:
        raise DataError("the clips have no text to predict")
    next_token = tally.loss_sum / tally.loss_tokens
    contrastive = _contrastive(model, config, tally)
    return {
        "heldout_loss": next_token + config.objective.contrastive_weight * contrastive,
        "heldout_next_token": next_token,
        "heldout_contrastive": contrastive,
    }


@torch.inference_mode()
def _contrastive(model: VideoLM, config: RunConfig, tally: Tally) -> float:
    loss = sigmoid_contrastive_loss if config.objective.contrastive == "sigmoid" else contrastive_loss
    video, text, groups = torch.stack(tally.video), torch.stack(tally.text), _groups(tally)
    scale, pairs, total = model.logit_scale.detach().float().cpu(), config.train.global_batch_pairs, 0.0
    for start in range(0, len(video), pairs):
        part = slice(start, start + pairs)
        total += len(video[part]) * float(loss(video[part], text[part], scale, groups[part]))
    return total / len(video)


def _groups(tally: Tally) -> Tensor:
    return torch.tensor([caption_group(row.caption) for row in tally.rows])


def _choices(tally: Tally, seed: int) -> Results:
    """Accuracy on questions, whole, by kind, and under each control."""
    asked = tally.questions[FULL]
    results: Results = {
        "questions": len(asked),
        "chance": sum(point.chance for point in asked) / len(asked) if asked else None,
    }
    results |= _estimate("temporal_qa", asked, seed)
    results["temporal_qa_by_kind"] = _by_kind(asked)
    for control in CONTROLS:
        results |= _estimate(f"temporal_qa_{control}", tally.questions[control], seed)
    turned = [point for point in tally.questions["reversed"] if point.kind in REVERSIBLE_KINDS]
    results |= _estimate("temporal_qa_reversed_direction_order", turned, seed)
    results["temporal_qa_reversed_by_kind"] = _by_kind(tally.questions["reversed"])
    return results


def _by_kind(points: Sequence[Point]) -> dict[str, float]:
    kinds: dict[str, list[float]] = {}
    for point in points:
        kinds.setdefault(point.kind, []).append(point.value)
    return {kind: sum(values) / len(values) for kind, values in sorted(kinds.items())}


def _estimate(name: str, points: Sequence[Point], seed: int) -> Results:
    """Mean and interval under `name`; None and no interval where there are no points."""
    if not points:
        return {name: None}
    found = bootstrap([point.value for point in points], [point.cluster for point in points], seed)
    return _with_interval(name, found)


def _with_interval(name: str, found: Estimate) -> Results:
    return {name: found.mean, f"{name}/interval": [found.low, found.high]}


def _twins(tally: Tally, seed: int) -> Results:
    """Own caption against the twin's: by likelihood, under each control, and by the cosine of the embeddings.

    A pair whose other clip could not be read is left out: only both together hold a bag of frames at one half.
    """
    partners = twin_captions(tally.rows)
    whole = {pair_name(row) for row in tally.rows if row.key in partners}
    results: Results = {"twin_clips": len(partners)}
    for condition, points in tally.twins.items():
        name = "twin_choice" if condition == FULL else f"twin_choice_{condition}"
        results |= _estimate(name, [point for point in points if point.cluster in whole], seed)
    place = {row.key: i for i, row in enumerate(tally.rows)}
    by_cosine = []
    for key in partners:
        row, video = tally.rows[place[key]], tally.video[place[key]]
        scores = [float(video @ tally.text[place[other]]) for other in (key, str(row.twin))]
        by_cosine.append(Point(pair_name(row), "twin", choose(scores, 0), 0.5))
    return results | _estimate("twin_choice_embedding", by_cosine, seed)


def _retrieval(model: VideoLM, tally: Tally, seed: int) -> Results:
    """Both directions over the whole pool; equal captions are all right.

    By the raw cosine, and apart from it by dual softmax, which uses all queries to answer one.
    """
    scores = (torch.stack(tally.text) @ torch.stack(tally.video).T).numpy()
    groups, clusters = _groups(tally).numpy(), [pair_name(row) for row in tally.rows]
    results: Results = {}
    for name, matrix in (("retrieval_t2v", scores), ("retrieval_v2t", scores.T)):
        found = retrieval(matrix, groups)
        results |= _with_interval(f"{name}_r1", bootstrap((found.ranks <= 1).astype(float).tolist(), clusters, seed))
        results |= {f"{name}_r{k}": found.recall(k) for k in RECALL_AT}
        results[f"{name}_median_rank"] = found.median_rank
        results["retrieval_chance_r1"] = found.chance_r1
        dual = retrieval(dual_softmax(matrix, float(model.logit_scale.detach().exp())), groups)
        results[f"{name}_dual_softmax_r1"] = dual.recall(1)
    return results


def _captions(tally: Tally, seed: int) -> Results:
    """CIDEr-D of the greedy captions, 0 to 10."""
    scores = cider(tally.captions, [[row.caption] for row in tally.rows])
    return _with_interval("caption_cider", bootstrap(scores.tolist(), [pair_name(row) for row in tally.rows], seed))
