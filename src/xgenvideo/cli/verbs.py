"""What each verb does: import its room, call it, print what came out. The rooms do the work and raise our errors."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError, DataError

MOST_PORT = 65_535


def run(parsed: argparse.Namespace) -> None:
    """Run the verb that was parsed. Raises XGenVideoError for a user's mistake."""
    verbs: dict[str, Callable[[argparse.Namespace], None]] = {
        "audit": audit,
        "calibrate": calibrate,
        "chaos": chaos,
        "checkpoints": checkpoints,
        "curate": curate,
        "demo": demo,
        "evaluate": evaluate,
        "export": export,
        "forget": forget,
        "generate": generate,
        "plan": plan,
        "recipes": recipes,
        "search": search,
        "serve": serve,
        "trace": trace,
        "train": train,
    }
    verbs[parsed.verb](parsed)


def _config(parsed: argparse.Namespace) -> RunConfig:
    """The recipe with its overrides, checked."""
    from xgenvideo.config import override
    from xgenvideo.recipes import find

    return override(find(parsed.recipe), parsed.overrides)


def _print_json(values: Any) -> None:
    print(json.dumps(values, indent=2, ensure_ascii=False))


def _note(text: str) -> None:
    """Progress and asides go to stderr, so that stdout is the answer."""
    print(text, file=sys.stderr)


def recipes(parsed: argparse.Namespace) -> None:
    """List the recipes, or print one with its overrides as JSON."""
    from xgenvideo.recipes import RECIPES

    if parsed.recipe:
        print(_config(parsed).to_json(), end="")
        return
    for name, recipe in RECIPES.items():
        print(f"{name}\n    {(recipe.__doc__ or '').strip()}\n")


def curate(parsed: argparse.Namespace) -> None:
    """Make raw clips, or turn a raw folder into a dataset."""
    out = Path(parsed.out)
    if parsed.source != "generate" and (parsed.clips is not None or parsed.seed is not None):
        raise ConfigError("--clips, --seed", parsed.source, "belong to `xgv curate generate` only")
    makes = parsed.source in ("generate", "real-samples")
    if makes and (parsed.overrides or parsed.preset or parsed.videos or parsed.work or parsed.part):
        raise ConfigError(
            "curate.field=value, --part, --preset, --videos, --work", parsed.source, "belong to the curation of pairs"
        )
    if parsed.source == "generate":
        from xgenvideo.data.generate import generate as generate_clips

        made = generate_clips(out, clips=64 if parsed.clips is None else parsed.clips, seed=parsed.seed or 0)
        print(f"{made.folder}: {made.clips} clips, {made.heldout} of them held out, {made.seconds:.0f} s of video")
    elif parsed.source == "real-samples":
        from xgenvideo.curate.real_samples import unpack

        print(f"{out}: {unpack(out)} real clips, their captions written by us")
    else:
        from xgenvideo.curate.inputs import Part
        from xgenvideo.curate.parts import curate_part
        from xgenvideo.curate.run import curate as curate_folder
        from xgenvideo.curate.settings import settings_from
        from xgenvideo.demo.stages import Milestones

        source, settings = Path(parsed.source), settings_from(parsed.overrides, parsed.preset)
        videos, work = parsed.videos, Path(parsed.work) if parsed.work else None
        if parsed.part:
            part = Part.parse(parsed.part)
            _print_json(curate_part(source, out, part, settings, Milestones(_note), videos, work).to_dict())
        else:
            summary = curate_folder(source, out, settings, Milestones(_note), videos, work)
            _print_json(summary.to_dict())
            if not summary.pairs_kept:
                raise DataError(f"{out}: nothing was kept, so there is no dataset; audit.jsonl and report.html say why")


def trace(parsed: argparse.Namespace) -> None:
    """A sample back to its source."""
    from xgenvideo.curate.takedown import trace as trace_sample

    _print_json(trace_sample(Path(parsed.dataset), parsed.sample))


def forget(parsed: argparse.Namespace) -> None:
    """A source out of a dataset."""
    from xgenvideo.curate.takedown import forget as forget_source

    _print_json(forget_source(Path(parsed.dataset), parsed.source).to_dict())


def plan(parsed: argparse.Namespace) -> None:
    """Work out what a recipe costs, or predict the runs of a file."""
    from xgenvideo.cli.plan import plan as plan_verb

    plan_verb(parsed, _config)


def calibrate(parsed: argparse.Namespace) -> None:
    """Measure this machine."""
    from xgenvideo.train.calibrate import calibrate as measure

    measure(Path(parsed.out), parsed.seconds, _note)


def train(parsed: argparse.Namespace) -> None:
    """Train, or go on where an earlier run stopped."""
    config = _config(parsed)
    if parsed.dry_run:
        _dry_run(config, parsed)
        return
    if not parsed.out:
        raise ConfigError("--out", "", "must be the folder of the run")
    if parsed.processes > 1:
        _train_ranks(config, parsed)
        return
    from xgenvideo.train.loop import train as train_run

    summary = train_run(config, Path(parsed.out))
    if os.environ.get("RANK", "0") == "0":
        print(summary)


def _train_ranks(config: RunConfig, parsed: argparse.Namespace) -> None:
    """Train as many ranks of this machine."""
    from xgenvideo.errors import TrainError
    from xgenvideo.parallel.launch import launch
    from xgenvideo.parallel.layout import check_layout
    from xgenvideo.train.stop import STOPPED, stop_of

    check_layout(config, parsed.processes)
    out = Path(parsed.out)
    (out / STOPPED).unlink(missing_ok=True)
    code = launch(parsed.processes, parsed.restarts, ["train", parsed.recipe, *parsed.overrides, "--out", parsed.out])
    stop = stop_of(out)
    if stop is not None:
        raise SystemExit(stop.exit_code)
    if code:
        raise TrainError(f"{parsed.processes} ranks ended with exit code {code}; what went wrong is told above")


def _dry_run(config: RunConfig, parsed: argparse.Namespace) -> None:
    """Lay out what each rank would hold."""
    from xgenvideo.parallel.dry_run import dry_run, to_text

    run = dry_run(config, parsed.world or config.layout.world)
    if parsed.json:
        Path(parsed.json).write_text(to_text(run), encoding="utf-8")
    print(run)


def evaluate(parsed: argparse.Namespace) -> None:
    """Measure a run or a release on a split of a dataset; the figures go to evaluation.json in the folder of a run."""
    if parsed.benchmark:
        _benchmark(parsed)
        return
    if not parsed.data:
        raise ConfigError("--data", None, "must name a dataset, or --benchmark a public benchmark")
    if parsed.out:
        raise ConfigError("--out", parsed.out, "belongs to --benchmark; --json prints the figures of a dataset")
    from xgenvideo.data.dataset import open_dataset
    from xgenvideo.evaluate.provenance import command_line
    from xgenvideo.evaluate.run import evaluate as measure
    from xgenvideo.evaluate.table import table

    folder = Path(parsed.model)
    model = _load(folder)
    dataset = open_dataset(Path(parsed.data))
    figures = measure(model.model, model.tokenizer, dataset, model.config, parsed.split, command=command_line())
    if parsed.json:
        _print_json(figures)
    else:
        print(table(figures))
    if parsed.split == "train":
        _note("figures of the clips that a model has learnt from are printed, and kept for no model card")
    elif not (folder / "release.json").is_file():
        _write_evaluation(folder, figures)
    if parsed.needle:
        _needle(folder, Path(parsed.needle))


def _benchmark(parsed: argparse.Namespace) -> None:
    """A public benchmark on a release."""
    from xgenvideo.evaluate.benchmark import run_benchmark
    from xgenvideo.evaluate.provenance import command_line
    from xgenvideo.evaluate.table import benchmark_table
    from xgenvideo.infer.release import load_release

    if not (parsed.annotations and parsed.videos):
        raise ConfigError("--annotations, --videos", parsed.annotations, "must both be given with --benchmark")
    release, annotations = load_release(Path(parsed.model)), Path(parsed.annotations)
    figures = run_benchmark(release, parsed.benchmark, annotations, Path(parsed.videos), command_line())
    if parsed.out:
        Path(parsed.out).write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if parsed.json:
        _print_json(figures)
    else:
        print(benchmark_table(figures))


def _needle(release: Path, out: Path) -> None:
    """Write needle.json and needle.svg."""
    from xgenvideo.evaluate.needle import heat_map, needle_grid, report
    from xgenvideo.infer.release import load_release

    cells = needle_grid(load_release(release))
    out.mkdir(parents=True, exist_ok=True)
    (out / "needle.json").write_text(json.dumps(report(cells), indent=2) + "\n", encoding="utf-8")
    (out / "needle.svg").write_text(heat_map(cells), encoding="utf-8")
    _note(f"{out / 'needle.svg'}: {len(cells)} cells")


def _load(folder: Path) -> Any:
    """A release or a run; both have model, tokenizer and config. Raises DataError for a folder that is neither."""
    if (folder / "release.json").is_file():
        from xgenvideo.infer.release import load_release

        return load_release(folder)
    if (folder / "config.json").is_file():
        from xgenvideo.checkpoint import load_run

        return load_run(folder)
    raise DataError(f"{folder}: is neither a run (no config.json) nor a release (no release.json)")


def _write_evaluation(run: Path, figures: dict[str, Any]) -> None:
    """A release is never changed, a run keeps its last evaluation for the model card."""
    temporary = run / "evaluation.json.tmp"
    temporary.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    temporary.replace(run / "evaluation.json")


def export(parsed: argparse.Namespace) -> None:
    """Write a release of a run's newest checkpoint; the card holds the run's own figures, measured or none."""
    from xgenvideo.release.export import export as export_run

    run = Path(parsed.run)
    evaluation = None
    if (run / "evaluation.json").is_file():
        evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    else:
        _note(f"{run} has no evaluation.json, so the model card will have no evaluation: run `xgv evaluate` first")
    print(export_run(run, Path(parsed.out), evaluation=evaluation))


def generate(parsed: argparse.Namespace) -> None:
    """Caption a video or answer a question about it."""
    from xgenvideo.infer.release import load_release

    release = load_release(Path(parsed.release))
    if parsed.at is not None:
        from xgenvideo.infer.moments import answer_at

        text, (start, end) = answer_at(release, Path(parsed.video), parsed.prompt, parsed.at)
        print(f"{text}\n{start:6.1f} s to {end:6.1f} s")
        return
    if not parsed.times:
        print(release.generate(Path(parsed.video), parsed.prompt))
        return
    from xgenvideo.infer.cite import answer_with_times

    answer = answer_with_times(release, Path(parsed.video), parsed.prompt)
    print(answer.text)
    for cited in answer.times:
        print(f"{cited.start:6.1f} s to {cited.end:6.1f} s  {cited.nats:+.2f} nats against no video")


def search(parsed: argparse.Namespace) -> None:
    """Rank the videos of a folder for a text, best first."""
    from xgenvideo.infer.release import load_release
    from xgenvideo.infer.search import search as find

    for hit in find(load_release(Path(parsed.release)), Path(parsed.folder), parsed.text, parsed.top, say=_note):
        print(f"{hit.score:.3f}  {hit.start:6.1f} s to {hit.end:6.1f} s  {hit.video}")


def serve(parsed: argparse.Namespace) -> None:
    """Answer over HTTP until interrupted."""
    from xgenvideo.infer.release import load_release
    from xgenvideo.infer.serve import check_host, check_port, read_token
    from xgenvideo.infer.serve import serve as serve_release
    from xgenvideo.infer.serving.limits import limits_from
    from xgenvideo.infer.serving.sources import Places

    limits = limits_from(parsed.overrides)
    if not 0 <= parsed.port <= MOST_PORT:
        raise ConfigError("--port", parsed.port, f"must be from 0 (any that is free) to {MOST_PORT}")
    token = read_token(Path(parsed.token_file) if parsed.token_file else None)
    check_host(parsed.host, token)
    check_port(parsed.host, parsed.port)
    folders, index = ([Path(name)] if name else [] for name in (parsed.allow, parsed.index))
    for folder in (*folders, *index):
        if not folder.is_dir():
            raise ConfigError("--allow, --index", str(folder), "must be a folder")
    places = Places(tuple(folders), tuple(name.lower() for name in parsed.allow_host))
    release = load_release(Path(parsed.release), parsed.device)
    _note(f"http://{parsed.host}:{parsed.port}/ is a page, /v1 the interface; Ctrl-C ends")
    serve_release(release, parsed.host, parsed.port, places, index[0] if index else None, limits, token)


def audit(parsed: argparse.Namespace) -> None:
    """Prove the accounting of a dataset or a run."""
    from xgenvideo.cli.audit import audit as audit_folder

    for line in audit_folder(Path(parsed.folder)):
        print(line)


def chaos(parsed: argparse.Namespace) -> None:
    """Hurt runs and say which promises held; exit code 1 when one did not."""
    from xgenvideo.train.chaos import run_chaos
    from xgenvideo.train.chaos.campaign import KNOWN

    faults = [name for name in parsed.faults.split(",") if name] or KNOWN
    try:
        processes = [int(number) for number in parsed.processes.split(",")]
    except ValueError as error:
        raise ConfigError("--processes", parsed.processes, "must be numbers of ranks, as 1,2,4") from error
    found = run_chaos(_config(parsed), Path(parsed.out), parsed.kills, processes, faults, parsed.seed, _note)
    if parsed.json:
        Path(parsed.json).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    _print_json({name: value for name, value in found.items() if name != "faults"})
    for verdict in found["faults"]:
        print(f"{'held  ' if verdict['held'] else 'BROKEN'}  {verdict['fault']}: {verdict['promise_in_words']}")
    if not found["held"]:
        raise SystemExit(1)


def checkpoints(parsed: argparse.Namespace) -> None:
    """List a run's checkpoints, every byte read back; with --pull bring copies, with --prune remove what may go."""
    from xgenvideo.cli.checkpoints import bring, list_checkpoints, prune

    run = Path(parsed.run)
    if parsed.pull:
        for path in bring(run, parsed.pull):
            _note(f"brought {path}")
    if parsed.prune:
        for path in prune(run, parsed.keep):
            _note(f"removed {path}")
    for line in list_checkpoints(run):
        print(line)


def demo(parsed: argparse.Namespace) -> None:
    """Run the journey, then print its targets as a table."""
    from xgenvideo.demo.journey import FULL, QUICK, run_demo
    from xgenvideo.demo.score import print_targets

    size = QUICK if parsed.quick else FULL
    out = Path(parsed.out or ("runs/demo-quick" if parsed.quick else "runs/demo"))
    summary = run_demo(out, size, _note)
    print_targets(summary["targets"])
    print(f"{out / 'summary.json'}\n{out / 'report.html'}")
