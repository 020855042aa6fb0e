"""What each verb does: import its room, call it, print what came out. The rooms do the work and raise our errors."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError


def run(parsed: argparse.Namespace) -> None:
    """Run the verb that was parsed. Raises XGenVideoError for a user's mistake."""
    verbs = {
        "audit": audit,
        "curate": curate,
        "demo": demo,
        "evaluate": evaluate,
        "export": export,
        "generate": generate,
        "plan": plan,
        "recipes": recipes,
        "search": search,
        "serve": serve,
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
    if parsed.source == "generate":
        from xgenvideo.data.generate import generate as generate_clips

        made = generate_clips(out, clips=64 if parsed.clips is None else parsed.clips, seed=parsed.seed or 0)
        print(f"{made.folder}: {made.clips} clips, {made.heldout} of them held out, {made.seconds:.0f} s of video")
    elif parsed.source == "real-samples":
        from xgenvideo.curate.real_samples import unpack_real_samples

        print(unpack_real_samples(out))
    else:
        from xgenvideo.curate.run import curate as curate_folder

        _print_json(curate_folder(Path(parsed.source), out).to_dict())


def plan(parsed: argparse.Namespace) -> None:
    """Work out what a recipe costs."""
    from xgenvideo.plan.render import render
    from xgenvideo.plan.report import plan as plan_run
    from xgenvideo.plan.report import to_json

    config = _config(parsed)
    report = plan_run(config, config.layout.world if parsed.gpus is None else parsed.gpus, parsed.gpu)
    if parsed.json:
        _print_json(to_json(report))
    else:
        print(render(report))


def train(parsed: argparse.Namespace) -> None:
    """Train, or go on where an earlier run stopped."""
    config = _config(parsed)
    from xgenvideo.train.loop import train as train_run

    print(train_run(config, Path(parsed.out)))


def evaluate(parsed: argparse.Namespace) -> None:
    """Measure a run or a release on a split of a dataset."""
    raise NotImplementedError


def export(parsed: argparse.Namespace) -> None:
    """Write a release."""
    raise NotImplementedError


def generate(parsed: argparse.Namespace) -> None:
    """Caption a video or answer a question about it."""
    from xgenvideo.infer.release import load_release

    release = load_release(Path(parsed.release))
    print(release.generate(Path(parsed.video), parsed.prompt))


def search(parsed: argparse.Namespace) -> None:
    """Rank the videos of a folder for a text."""
    raise NotImplementedError


def serve(parsed: argparse.Namespace) -> None:
    """Serve a release over HTTP."""
    raise NotImplementedError


def audit(parsed: argparse.Namespace) -> None:
    """Prove the accounting of a dataset or a run."""
    from xgenvideo.cli.audit import audit as audit_folder

    for line in audit_folder(Path(parsed.folder)):
        print(line)


def demo(parsed: argparse.Namespace) -> None:
    """Run the journey."""
    from xgenvideo.demo.journey import FULL, QUICK, run_demo

    size = QUICK if parsed.quick else FULL
    out = Path(parsed.out or ("runs/demo-quick" if parsed.quick else "runs/demo"))
    run_demo(out, size, _note)
