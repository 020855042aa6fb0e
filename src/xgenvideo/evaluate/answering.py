"""Multiple choice over annotated videos: the likeliest option, with the controls beside it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from xgenvideo.errors import DataError, MediaError
from xgenvideo.evaluate.controls import CONTROLS, FULL
from xgenvideo.evaluate.formats.questions import Asked, by_video
from xgenvideo.evaluate.measure import CONDITIONS, Point
from xgenvideo.evaluate.metrics import bootstrap, choose
from xgenvideo.evaluate.videos import Encoded, Videos, window_latents
from xgenvideo.infer.likelihood import log_likelihoods, option_documents
from xgenvideo.infer.release import Release

RULES = ("accuracy", "accuracy_per_token")
PROTOCOL = {
    "accuracy": "an option's score is the summed log-likelihood of its text after the question; the highest is chosen",
    "accuracy_per_token": "the same sum divided by the option's tokens; never to be compared with the other",
    "prompt": "Question: QUESTION Answer: OPTION, without letters; no other option and no subtitle is shown",
    "controls": "the same questions and options; no_video sees text alone, one_frame the middle frame, shuffled and "
    "reversed all frames in another order at ascending times",
}
Results = dict[str, Any]


@dataclass
class Answers:
    """Points by rule and condition, and questions that could not be asked, with the reason."""

    points: dict[tuple[str, str], list[Point]] = field(
        default_factory=lambda: {(rule, condition): [] for rule in RULES for condition in CONDITIONS}
    )
    not_asked: dict[str, int] = field(default_factory=dict)

    def leave_out(self, reason: str, count: int) -> None:
        """Count questions that are not among the figures."""
        if count:
            self.not_asked[reason] = self.not_asked.get(reason, 0) + count


def answer_questions(release: Release, asked: Sequence[Asked], videos: Videos, seed: int = 0) -> Results:
    """Accuracies as JSON values: over all, by kind, under each control, with bootstrap intervals over videos.

    What could not be asked is counted by reason. Raises DataError where no question at all could be asked.
    """
    answers, names = Answers(), 0
    for name, questions in by_video(asked):
        names += 1
        known = [one for one in questions if one.answer is not None]
        answers.leave_out("answer not public", len(questions) - len(known))
        video = videos.open(release, name) if known else None
        if video is None:
            answers.leave_out("video missing or unreadable", len(known))
            continue
        for part, group in _parts(video, known, answers):
            _answer(release, part, group, answers, seed)
    if not answers.points[RULES[0], FULL]:
        raise DataError(
            f"{videos.folder}: none of {len(asked)} questions can be asked: {answers.not_asked}; "
            f"the first videos looked for are {[one.video for one in asked[:3]]}"
        )
    return _results(answers, len(asked), videos.summary(names), seed)


def _parts(video: Encoded, questions: Sequence[Asked], answers: Answers) -> Iterator[tuple[Encoded, list[Asked]]]:
    """The parts of a video that are asked about, each with its questions."""
    groups: dict[tuple[float | None, float | None], list[Asked]] = {}
    for one in questions:
        groups.setdefault((one.start, one.end), []).append(one)
    for (start, end), group in groups.items():
        try:
            part = video.part(start, end)
        except MediaError:
            answers.leave_out("no frame in the part that is asked about", len(group))
            continue
        yield part, group


def _answer(release: Release, video: Encoded, questions: Sequence[Asked], answers: Answers, seed: int) -> None:
    """A point a question, rule and condition."""
    documents = [option_documents(one.question, one.options, release.tokenizer) for one in questions]
    flat = [document for several in documents for document in several]
    lengths = [len(document.ids) - document.predicted_from for document in flat]
    for condition in CONDITIONS:
        latents = _seen(release, video, condition, questions[0].video, seed)
        sums = log_likelihoods(release.model, flat, latents, [0] * len(flat))
        per_token = [value / length for value, length in zip(sums, lengths, strict=True)]
        for rule, values in zip(RULES, (sums, per_token), strict=True):
            scores = iter(values)
            for one in questions:
                assert one.answer is not None, "questions without a public answer were left out"
                value = choose([next(scores) for _ in one.options], one.answer)
                answers.points[rule, condition].append(Point(one.video, one.kind, value, 1 / len(one.options)))


def _seen(release: Release, video: Encoded, condition: str, name: str, seed: int) -> Tensor | None:
    """Latents [1 W*Q Dr] of what a condition shows."""
    if condition == "no_video":
        return None
    return window_latents(release, video, condition, name, seed).flatten(0, 1)[None]


def _results(answers: Answers, annotated: int, videos: Results, seed: int) -> Results:
    asked = answers.points[RULES[0], FULL]
    results: Results = {
        "videos": videos,
        "questions": {"annotated": annotated, "asked": len(asked), "not_asked": answers.not_asked},
        "chance": float(np.mean([point.chance for point in asked])),
        "protocol": PROTOCOL,
        "intervals": {},
    }
    for rule in RULES:
        for condition in (FULL, *CONTROLS):
            name = rule if condition == FULL else f"{rule}_{condition}"
            points = answers.points[rule, condition]
            found = bootstrap([point.value for point in points], [point.cluster for point in points], seed)
            results[name], results["intervals"][name] = found.mean, [found.low, found.high]
        results[f"{rule}_by_kind"] = _by_kind(answers.points[rule, FULL])
    return results


def _by_kind(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    kinds: dict[str, list[float]] = {}
    for point in points:
        kinds.setdefault(point.kind, []).append(point.value)
    return {kind: {"accuracy": float(np.mean(found)), "questions": len(found)} for kind, found in sorted(kinds.items())}
