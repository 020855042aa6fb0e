"""The whole evaluation on generated twins: brute force, controls, and what an order-blind model scores."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import Tensor

from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import Dataset
from xgenvideo.data.loader import read_once
from xgenvideo.data.text import caption_document, pack_question, question_document
from xgenvideo.data.tokenizer import Tokenizer
from xgenvideo.errors import ConfigError, DataError
from xgenvideo.evaluate.controls import Clip, changed, padded
from xgenvideo.evaluate.measure import Subject, measure, twin_captions
from xgenvideo.evaluate.run import evaluate
from xgenvideo.evaluate.table import table
from xgenvideo.models.video_lm import VideoLM

KEYS = {
    "heldout_loss", "temporal_qa", "temporal_qa_by_kind", "twin_choice", "temporal_qa_no_video",
    "temporal_qa_one_frame", "temporal_qa_shuffled", "temporal_qa_reversed", "temporal_qa_reversed_direction_order",
    "retrieval_t2v_r1", "retrieval_t2v_r5", "retrieval_t2v_r10", "retrieval_t2v_median_rank", "retrieval_v2t_r1",
    "retrieval_v2t_r5", "retrieval_v2t_r10", "retrieval_v2t_median_rank", "retrieval_chance_r1", "chance",
    "caption_cider", "intervals", "clips", "questions", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def results(
    small_model: VideoLM, twins_tokenizer: Tokenizer, twins_dataset: Dataset, small_config: RunConfig
) -> dict[str, object]:
    return evaluate(small_model, twins_tokenizer, twins_dataset, small_config)


def clip_of(dataset: Dataset, number: int) -> Clip:
    """A clip whose features are its frame numbers, at uneven times."""
    row = list(dataset.rows("heldout"))[number]
    count = row.frames
    return Clip(row, torch.arange(count, dtype=torch.float32).reshape(count, 1, 1), torch.arange(count) ** 1.5)


def test_every_figure_is_there_and_is_json(results: dict[str, object]) -> None:
    assert set(results) >= KEYS
    assert json.loads(json.dumps(results)) == results
    assert results["clips"] == 24
    assert results["twin_clips"] == 24
    assert results["chance"] == 0.5
    assert results["retrieval_chance_r1"] == pytest.approx(1 / 24)
    intervals = results["intervals"]
    assert isinstance(intervals, dict)
    for name in ("temporal_qa", "twin_choice", "retrieval_t2v_r1", "caption_cider"):
        low, high = intervals[name]
        value = results[name]
        assert isinstance(value, float)
        assert low <= value <= high


def test_it_says_what_was_measured_on_what(
    results: dict[str, object], twins_dataset: Dataset, small_config: RunConfig
) -> None:
    of = results["of"]
    assert isinstance(of, dict)
    assert of["data"] == {"dataset_sha256": twins_dataset.fingerprint}
    assert of["weights_sha256"] == results["weights"]
    assert of["config"]["model"]["resampler"]["queries"] == small_config.model.resampler.queries
    assert "torch" in of["versions"]


def test_a_model_without_video_or_with_one_frame_is_exactly_at_chance(results: dict[str, object]) -> None:
    """Twins have the same questions with other answers and the same middle frame, so nothing else is possible."""
    for name in ("temporal_qa_no_video", "twin_choice_no_video"):
        assert results[name] == 0.5
    for name in ("temporal_qa_one_frame", "twin_choice_one_frame"):
        assert results[name] == pytest.approx(0.5, abs=0.05)


def test_loss_is_that_of_the_batches_that_training_reads(
    results: dict[str, object],
    small_model: VideoLM,
    twins_tokenizer: Tokenizer,
    twins_dataset: Dataset,
    small_config: RunConfig,
) -> None:
    total, count = 0.0, 0
    for batch in read_once(twins_dataset, twins_tokenizer, small_config, "heldout", 5):
        assert batch.frames is not None
        with torch.no_grad():
            features = small_model.encode_frames(batch.frames)
            latents = small_model.latents(features, batch.pts, batch.frame_mask)
            logits = small_model.logits(batch.tokens, batch.positions, batch.documents, latents, batch.sees_video)
        for row, targets in zip(logits, batch.targets, strict=True):
            for scores, target in zip(row, targets.tolist(), strict=True):
                if target >= 0:
                    total -= float(scores.log_softmax(-1)[target])
                    count += 1
    assert results["heldout_next_token"] == pytest.approx(total / count, rel=1e-5)


def test_questions_are_answered_as_by_brute_force(
    results: dict[str, object],
    small_model: VideoLM,
    twins_tokenizer: Tokenizer,
    twins_dataset: Dataset,
    small_config: RunConfig,
) -> None:
    right = []
    for number, batch in enumerate(read_once(twins_dataset, twins_tokenizer, small_config, "heldout", 1)):
        assert batch.frames is not None
        with torch.no_grad():
            latents = small_model.latents(small_model.encode_frames(batch.frames), batch.pts, batch.frame_mask)
        for question in list(twins_dataset.rows("heldout"))[number].questions:
            scores = [
                one_by_one(small_model, twins_tokenizer, latents, question.text, text) for text in question.options
            ]
            right.append(int(np.argmax(scores)) == question.answer)
    assert results["questions"] == len(right)
    assert results["temporal_qa"] == pytest.approx(np.mean(right))


@torch.no_grad()
def one_by_one(model: VideoLM, tokenizer: Tokenizer, latents: Tensor, question: str, option: str) -> float:
    """Log-likelihood of one option, its tokens fed one more at a time."""
    text = pack_question(question, option, tokenizer, 64)
    used = int(text.sees_video.sum())
    total = 0.0
    for length in range(1, used):
        target = int(text.targets[length - 1])
        if target < 0:
            continue
        tokens = torch.from_numpy(text.tokens[None, :length])
        positions, documents = torch.arange(length)[None], torch.zeros(1, length, dtype=torch.int64)
        logits = model.logits(tokens, positions, documents, latents, torch.ones(1, length, dtype=torch.bool))
        total += float(logits[0, -1].log_softmax(-1)[target])
    return total


def test_controls_change_frames_and_never_the_direction_of_time(twins_dataset: Dataset) -> None:
    clip = clip_of(twins_dataset, 0)
    count = len(clip.pts)
    assert changed(clip, "full", 0) is clip
    middle = changed(clip, "one_frame", 0)
    assert middle.features.item() == count // 2
    assert middle.pts.item() == pytest.approx((count // 2) ** 1.5)
    back = changed(clip, "reversed", 0)
    assert back.features.flatten().tolist() == list(range(count))[::-1]
    mixed = changed(clip, "shuffled", 0)
    assert sorted(mixed.features.flatten().tolist()) == list(range(count))
    assert mixed.features.flatten().tolist() != list(range(count))
    assert torch.equal(mixed.features, changed(clip, "shuffled", 0).features)
    assert not torch.equal(mixed.features, changed(clip, "shuffled", 1).features)
    for other in (back, mixed):
        assert torch.equal(other.pts, clip.pts)


def test_shuffled_twins_look_the_same(twins_dataset: Dataset) -> None:
    first, second = clip_of(twins_dataset, 0), clip_of(twins_dataset, 1)
    assert second.row.twin == first.row.key
    second = dataclasses.replace(second, features=first.features[torch.randperm(len(first.pts))])
    assert torch.equal(changed(first, "shuffled", 0).features, changed(second, "shuffled", 0).features)


def test_padding_is_masked(twins_dataset: Dataset) -> None:
    clip = clip_of(twins_dataset, 0)
    short = changed(clip, "one_frame", 0)
    features, pts, mask = padded([clip, short])
    assert mask.sum(dim=1).tolist() == [len(clip.pts), 1]
    assert torch.equal(features[1, 0], short.features[0])
    assert pts.shape == mask.shape == features.shape[:2]


class OrderBlind(torch.nn.Module):
    """A bag of frames: latents that are the mean over frames, whatever their order and times."""

    def __init__(self, model: VideoLM) -> None:
        super().__init__()
        self.inner, self.logit_scale, self.decoder = model, model.logit_scale, model.decoder
        self.encode_frames, self.video_embedding, self.logits = model.encode_frames, model.video_embedding, model.logits

    def latents(self, features: Tensor, pts: Tensor, mask: Tensor) -> Tensor:
        """Latents [B Q Dr] of the sorted mean, exactly equal for twins."""
        weights = mask[..., None, None].double()
        mean = ((features.double() * weights).sum(dim=1) / weights.sum(dim=1)).float()
        return self.inner.latents((mean * 100).round()[:, None] / 100, pts[:, :1] * 0, mask[:, :1])

    def forward(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        """As the model."""
        found: tuple[Tensor, Tensor] = self.inner(*parts)
        return found


def test_a_bag_of_frames_scores_one_half(
    small_model: VideoLM, twins_tokenizer: Tokenizer, twins_dataset: Dataset, small_config: RunConfig
) -> None:
    found = evaluate(OrderBlind(small_model), twins_tokenizer, twins_dataset, small_config)  # type: ignore[arg-type]
    for name in ("twin_choice", "temporal_qa", "temporal_qa_shuffled", "temporal_qa_reversed"):
        assert found[name] == pytest.approx(0.5, abs=0.02), name


def test_a_limit_splits_no_pair_into_the_figures(
    small_model: VideoLM, twins_tokenizer: Tokenizer, twins_dataset: Dataset, small_config: RunConfig
) -> None:
    rows = list(twins_dataset.rows("heldout"))[:3]
    assert set(twin_captions(rows)) == {"heldout0a", "heldout0b"}
    tally = measure(Subject(small_model, twins_tokenizer, small_config, twins_dataset, None, 0), rows)
    assert [row.key for row in tally.rows] == [row.key for row in rows]
    assert len(tally.twins["full"]) == 2


def test_the_table_says_what_was_not_measured(results: dict[str, object]) -> None:
    text = table(results)
    assert "twin_choice" in text
    assert "50.0 %" in text
    assert "not measured" not in text
    assert "not measured" in table({**results, "temporal_qa": None})


def test_impossible_requests(
    small_model: VideoLM, twins_tokenizer: Tokenizer, twins_dataset: Dataset, small_config: RunConfig
) -> None:
    with pytest.raises(DataError, match="nosuch"):
        evaluate(small_model, twins_tokenizer, twins_dataset, small_config, split="nosuch")
    with pytest.raises(ConfigError, match="limit"):
        evaluate(small_model, twins_tokenizer, twins_dataset, small_config, limit=0)


class Oracle(torch.nn.Module):
    """Reads the order of frames perfectly: it prefers the texts of the twin whose order it sees."""

    def __init__(self, model: VideoLM, tokenizer: Tokenizer, dataset: Dataset, config: RunConfig) -> None:
        super().__init__()
        self.inner, self.logit_scale, self.decoder = model, model.logit_scale, model.decoder
        self.encode_frames, self.video_embedding = model.encode_frames, model.video_embedding
        self.clips: list[tuple[Tensor, set[tuple[int, ...]]]] = []
        for number, batch in enumerate(read_once(dataset, tokenizer, config, "heldout", 1)):
            assert batch.frames is not None
            row = list(dataset.rows("heldout"))[number]
            texts = {caption_document(row.caption, tokenizer, 128).ids}
            texts |= {question_document(one.text, one.options[one.answer], tokenizer).ids for one in row.questions}
            seen = self.latents(model.encode_frames(batch.frames), batch.pts, batch.frame_mask)[0]
            self.clips.append((seen, texts))

    def latents(self, features: Tensor, pts: Tensor, mask: Tensor) -> Tensor:
        """Latents [B Q Dr] whose first numbers are the set of frames, which twins share, and their order."""
        direction = torch.linspace(-1, 1, features[0, 0].numel(), dtype=torch.float64).sin() * 7
        frames = (features.double().flatten(2) @ direction) * mask
        places = torch.arange(frames.shape[1]) / 64
        found = torch.zeros(len(frames), 8, 64)
        found[:, 0, 0] = frames.sum(dim=1)
        found[:, 0, 1] = (frames * (places + places**2)).sum(dim=1)
        return found

    def logits(
        self, tokens: Tensor, positions: Tensor, documents: Tensor, latents: Tensor | None, sees: Tensor
    ) -> Tensor:
        """Uniform, but for the following tokens of a text that is true of the clip."""
        logits = torch.zeros(*tokens.shape, self.inner.config.decoder.vocab)
        for i in range(len(tokens) if latents is not None else 0):
            assert latents is not None
            ids = tuple(tokens[i][documents[i] == 0].tolist())
            nearest = min(self.clips, key=lambda clip: float((clip[0][0, :2] - latents[i][0, :2]).abs().sum()))
            if ids in nearest[1]:
                logits[i, torch.arange(len(ids) - 1), tokens[i, 1 : len(ids)]] = 20.0
        return logits

    def forward(self, *parts: Tensor) -> tuple[Tensor, Tensor]:
        """As the model."""
        found: tuple[Tensor, Tensor] = self.inner(*parts)
        return found


def test_a_model_that_reads_order_gets_everything_and_reversed_little(
    small_model: VideoLM, twins_tokenizer: Tokenizer, twins_dataset: Dataset, small_config: RunConfig
) -> None:
    oracle = Oracle(small_model, twins_tokenizer, twins_dataset, small_config)
    found = evaluate(oracle, twins_tokenizer, twins_dataset, small_config)  # type: ignore[arg-type]
    assert found["twin_choice"] == 1.0
    assert found["temporal_qa"] == 1.0
    assert set(found["temporal_qa_by_kind"].values()) == {1.0}
    # Not zero: a few twins are another order than the plain reversal, which is then a clip of its own.
    assert found["temporal_qa_reversed_direction_order"] < 0.2
    for name in ("temporal_qa_no_video", "temporal_qa_one_frame", "temporal_qa_shuffled", "twin_choice_shuffled"):
        assert found[name] == pytest.approx(0.5, abs=0.02), name
