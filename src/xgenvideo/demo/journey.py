"""The journey of `xgv demo`: clips, curation, training, evaluation, release, answers; every stage resumable.

Run: xgv demo [--quick] [--out runs/demo]. The stages call the rooms' public functions; nothing here is measured twice.
"""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xgenvideo import __version__
from xgenvideo.config import RunConfig, override
from xgenvideo.demo import steps
from xgenvideo.demo.report import Answered, ReportData, write_report
from xgenvideo.demo.score import Target, judge, read_lines
from xgenvideo.demo.stages import Stage, StageRecord, run_stages, write_json
from xgenvideo.recipes import find


@dataclass(frozen=True)
class DemoSize:
    """How much the demonstration does. `clips` counts those for training and those held out; `steps` of training.

    `defect_share` of the clips for training carry a planted defect. The held-out loss is measured every
    `eval_every_steps` of training; 0 where the clips held out fill no batch. `needles` clips are hidden in videos of
    `haystack_seconds`.
    """

    name: str
    clips: int
    steps: int
    defect_share: float
    eval_every_steps: int = 0
    answered_clips: int = 3
    seed: int = 0
    needles: int = 3
    haystack_seconds: tuple[int, ...] = (32, 120, 300, 600)


# The figures of the evaluation that stand at the top of the summary.
LIFTED = ("temporal_qa", "twin_choice", "chance", "retrieval_", "caption_cider", "heldout_")
# 20 of each of the eight defects.
FULL = DemoSize("full", clips=2400, steps=1050, defect_share=0.08, eval_every_steps=150)
QUICK = DemoSize("quick", clips=48, steps=30, defect_share=0.15, needles=1, haystack_seconds=(32, 120))


def run_demo(out: Path, size: DemoSize, say: Callable[[str], None]) -> dict[str, Any]:
    """Run or resume the journey in `out`; returns the summary, which is also in out/summary.json beside report.html."""
    dataset = f"data.shards={out / 'curated' / 'dataset'}"
    training = [f"train.steps={size.steps}", f"train.eval_every_steps={size.eval_every_steps}"]
    config = override(find("tiny"), [dataset, *training])
    records = run_stages(out, plan_stages(out, size, config, say), say)
    summary = summarise(size, records)
    targets = judge(summary, quick=size.name == "quick")
    summary["targets"] = [target.to_dict() for target in targets]
    write_json(out / "summary.json", summary)
    _report(out, size, summary, targets, records)
    return summary


def plan_stages(out: Path, size: DemoSize, config: RunConfig, say: Callable[[str], None]) -> list[Stage]:
    """The stages in order. The rooms named are those whose code decides the result of the stage."""
    raw, dataset, run, release = out / "raw", out / "curated" / "dataset", out / "run", out / "release"
    evaluation = out / "evaluation.json"
    return [
        Stage(
            "generate",
            lambda: steps.make_clips(raw, size.clips, size.seed, size.defect_share),
            "raw",
            ("data/generate",),
            {"clips": size.clips, "seed": size.seed, "defect_share": size.defect_share},
            resumes=True,
        ),
        Stage(
            "curate",
            lambda: steps.curate_clips(raw, dataset, config, say),
            "curated",
            ("curate", "data", "demo/steps.py", "demo/score.py"),
            {"vocab": config.model.decoder.vocab},
            resumes=True,
        ),
        Stage(
            "train",
            lambda: steps.train_model(config, run),
            "run",
            ("train", "models", "objectives.py", "checkpoint", "parallel"),
            {"config": asdict(config)},
            resumes=True,
        ),
        Stage(
            "evaluate",
            lambda: steps.evaluate_run(run, dataset, evaluation),
            "evaluation.json",
            ("evaluate", "infer"),
        ),
        Stage("export", lambda: steps.export_run(run, release, dataset, evaluation), "release", ("release",)),
        Stage(
            "answer",
            lambda: steps.answer_clips(release, raw, dataset, out / "answers.json", size.answered_clips),
            "answers.json",
            ("demo/steps.py", "demo/report.py"),
            {"answered_clips": size.answered_clips},
        ),
        Stage(
            "needle",
            lambda: steps.find_needles(release, out / "needle.json", size.needles, size.haystack_seconds),
            "needle.json",
            ("evaluate/needle.py", "infer/moments.py"),
            {"needles": size.needles, "haystack_seconds": size.haystack_seconds},
        ),
        Stage(
            "real",
            lambda: steps.curate_real(out / "real", config, say),
            "real",
            ("curate", "data"),
            {"installed": steps.real_clips_installed()},
        ),
    ]


def summarise(size: DemoSize, records: dict[str, StageRecord]) -> dict[str, Any]:
    """All figures of the journey under the names that its users rely on."""
    curated, trained, evaluation = (records[name].result for name in ("curate", "train", "evaluate"))
    return {
        "version": __version__,
        "size": asdict(size),
        **curated,
        **trained,
        **{name: value for name, value in evaluation.items() if name.startswith(LIFTED)},
        "evaluation": evaluation,
        "needle": records["needle"].result,
        "real": records["real"].result,
        "seconds_by_stage": {name: record.seconds for name, record in records.items()},
        "peak_rss_mb_by_stage": {name: record.peak_rss_mb for name, record in records.items()},
        "peak_rss_mb": max(record.peak_rss_mb for record in records.values()),
    }


def _report(
    out: Path, size: DemoSize, summary: dict[str, Any], targets: list[Target], records: dict[str, StageRecord]
) -> None:
    answered = [Answered(**values) for values in records["answer"].result["clips"]]
    title = "X-Gen-Video: from raw video to a released model" + (" (quick)" if size.name == "quick" else "")
    metrics = read_lines(out / "run" / "metrics.jsonl")
    data = ReportData(title, summary, targets, metrics, answered, summary["real"], facts(size))
    write_report(out / "report.html", data)


def facts(size: DemoSize) -> dict[str, str]:
    """What the figures were measured with, for the foot of the page."""
    import torch

    return {
        "xgenvideo": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "clips": str(size.clips),
        "steps": str(size.steps),
        "seed": str(size.seed),
    }
