"""The command `xgv`: one verb a room. This file parses and turns errors into exit codes; `verbs.py` does the work.

No room is imported here: each verb imports its own, so that `xgv --help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from xgenvideo import __version__
from xgenvideo.cli import verbs
from xgenvideo.errors import ConfigError, XGenVideoError

EXIT_SYSTEM = 1
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; a user's mistake is one line on stderr, our own bug a traceback."""
    parsed = parse(arguments)
    try:
        verbs.run(parsed)
    except XGenVideoError as error:
        rank = int(os.environ.get("RANK", "0"))
        # A wrong setting is wrong on every rank: one tells. Anything else may be one rank's trouble.
        if rank == 0 or not isinstance(error, ConfigError):
            who = f"rank {rank}: " if rank else ""
            # One write: ranks share a terminal, and `print` of an unbuffered process writes the line's end apart.
            sys.stderr.write(f"xgv {parsed.verb}: {who}{' '.join(str(error).split())}\n")
        return error.exit_code
    except KeyboardInterrupt:
        print(f"xgv {parsed.verb}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_CLOSED_PIPE
    except OSError as error:  # after BrokenPipeError, which is one
        if not error.strerror:
            raise
        named = error.filename if error.filename is not None else "the system"
        told = f"{named}: {error.strerror}; mend that, or name another place, and run again"
        print(f"xgv {parsed.verb}: {told}", file=sys.stderr)
        return EXIT_SYSTEM
    return 0


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; overrides may stand after options too, which argparse alone does not allow."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    late = [text for text in rest if "=" in text and not text.startswith("-")]
    if len(late) < len(rest) or (late and "overrides" not in parsed):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if late:
        parsed.overrides = [*parsed.overrides, *late]
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(prog="xgv", description="From raw video to a trained, evaluated, released model.")
    parser.add_argument("--version", action="version", version=f"xgv {__version__}")
    verb = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_data_verbs(verb)
    _add_train_verbs(verb)
    _add_model_verbs(verb)
    _add_journey_verbs(verb)
    return parser


def _add_data_verbs(verb: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    curate = verb.add_parser("curate", help="raw video-text pairs to a sharded dataset")
    curate.add_argument("source", metavar="SOURCE", help="pairs, a listing or tars; or: generate, real-samples")
    curate.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write")
    curate.add_argument(
        "--videos", metavar="FOLDER", help="where a listing's videos are (default: beside it), or s3://..."
    )
    curate.add_argument("overrides", nargs="*", metavar="curate.field=value")
    curate.add_argument("--work", metavar="FOLDER", help="scores and clips; an earlier OUT.work: nothing decoded twice")
    curate.add_argument("--part", metavar="I/N", help="the work of machine I (from 0) of N; then once without it")
    curate.add_argument("--preset", default="", metavar="NAME", help="a published subset: panda-10m, internvid-flt")
    curate.add_argument("--clips", type=int, metavar="N", help="generate: how many clips (default 64)")
    curate.add_argument("--seed", type=int, metavar="S", help="generate: the seed (default 0)")
    trace = verb.add_parser("trace", help="a sample back to its source, times, every score and decision")
    trace.add_argument("sample", metavar="SAMPLE", help="its key, or its name in audit.jsonl")
    trace.add_argument("--data", required=True, dest="dataset", metavar="DATASET")
    forget = verb.add_parser("forget", help="takedown: remove all that came from a source from a dataset")
    forget.add_argument("source", metavar="SOURCE", help="as `xgv trace` shows it, such as youtube/ID")
    forget.add_argument("--data", required=True, dest="dataset", metavar="DATASET")
    audit = verb.add_parser("audit", help="prove the accounting of a dataset or a run")
    audit.add_argument("folder", metavar="RUN|DATASET")


def _add_train_verbs(verb: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    recipes = verb.add_parser("recipes", help="list the recipes, or print one resolved as JSON")
    recipes.add_argument("recipe", nargs="?", metavar="RECIPE")
    recipes.add_argument("overrides", nargs="*", metavar="section.field=value")
    _add_plan_verbs(verb)
    checkpoints = verb.add_parser("checkpoints", help="list a run's checkpoints, verified to the byte; prune them")
    checkpoints.add_argument("run", metavar="RUN")
    checkpoints.add_argument("--prune", action="store_true", help="remove what retention no longer needs")
    checkpoints.add_argument("--keep", type=int, metavar="K", help="permanent ones to keep (default: as the run does)")
    checkpoints.add_argument("--pull", metavar="URL", help="bring verified checkpoints from a copy (safety.copy_to)")
    chaos = verb.add_parser("chaos", help="hurt runs of a recipe's model: kills, hangs, damage; a verdict a promise")
    chaos.add_argument("recipe", metavar="RECIPE")
    chaos.add_argument("overrides", nargs="*", metavar="section.field=value")
    chaos.add_argument("--out", required=True, metavar="FOLDER", help="where the runs go")
    chaos.add_argument("--kills", type=int, default=100, metavar="N", help="kill points in all (default 100)")
    chaos.add_argument("--processes", default="1,2,4", metavar="N,..", help="ranks of the layouts (default 1,2,4)")
    chaos.add_argument("--faults", default="", metavar="F,..", help="default: all of them")
    chaos.add_argument("--seed", type=int, default=0, metavar="S")
    chaos.add_argument("--json", metavar="FILE", help="write every figure and verdict")
    train = verb.add_parser("train", help="train a recipe; run it again to resume")
    train.add_argument("recipe", metavar="RECIPE")
    train.add_argument("overrides", nargs="*", metavar="section.field=value")
    train.add_argument("--out", metavar="RUN", help="the run folder")
    train.add_argument(
        "--dry-run", action="store_true", help="lay out the ranks of --world without memory; no training"
    )
    train.add_argument("--world", type=int, metavar="N", help="dry run: how many ranks (default: the layout's)")
    train.add_argument("--json", metavar="FILE", help="dry run: write the figures")
    train.add_argument("--processes", type=int, default=1, metavar="N", help="start so many ranks on this machine")
    train.add_argument("--restarts", type=int, default=0, metavar="R", help="start all ranks again when one dies")


def _add_plan_verbs(verb: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    plan = verb.add_parser("plan", help="parameters, FLOPs, memory, days and cost of a recipe, without a GPU")
    plan.add_argument("recipe", nargs="?", metavar="RECIPE")
    plan.add_argument("--gpus", type=int, metavar="N", help="default: as many as the recipe's layout has")
    plan.add_argument("--gpu", default=None, metavar="NAME", help="default h100; or a file that `xgv calibrate` wrote")
    plan.add_argument("--search", action="store_true", help="rank every layout that fits; the ten best")
    plan.add_argument(
        "--compare", action="store_true", help="the layout on every GPU, and from half to four times as many"
    )
    plan.add_argument("--tokens-per-pair", type=int, metavar="N", help="text tokens of a pair")
    plan.add_argument("--epochs", type=float, metavar="E", help="times that every pair is seen")
    plan.add_argument(
        "--days", type=float, metavar="D", help="given any two of the last three, the third is solved for"
    )
    plan.add_argument("--curated", metavar="DATASET", help="plan curation by what this dataset's took")
    plan.add_argument("--timeline", metavar="FOLDER", help="simulate one step: a trace for Perfetto and a picture")
    plan.add_argument("--plots", metavar="FOLDER", help="time against GPUs and memory by stage, as SVG")
    plan.add_argument("--rows", metavar="FILE.csv", help="predict the published runs of a file instead of a recipe")
    plan.add_argument("--json", nargs="?", const="-", metavar="OUT", help="all figures as JSON, printed or to a file")
    plan.add_argument("overrides", nargs="*", metavar="section.field=value")
    calibrate = verb.add_parser(
        "calibrate", help="measure this machine's rates in about a minute, for `xgv plan --gpu`"
    )
    calibrate.add_argument("--out", default="calibration.json", metavar="FILE", help="default calibration.json")
    calibrate.add_argument("--seconds", type=float, default=60.0, metavar="S", help="about how long (default 60)")


def _add_model_verbs(verb: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    evaluate = verb.add_parser("evaluate", help="loss, retrieval, temporal questions with controls, captions")
    evaluate.add_argument("model", metavar="RUN|RELEASE")
    evaluate.add_argument("--data", metavar="DATASET", help="a dataset that `xgv curate` wrote")
    evaluate.add_argument("--split", default="heldout")
    evaluate.add_argument("--json", action="store_true", help="all figures as JSON")
    evaluate.add_argument("--needle", metavar="FOLDER", help="of a release: hide clips in long videos, too")
    evaluate.add_argument("--benchmark", metavar="NAME", help="of a release: a public benchmark instead of a dataset")
    evaluate.add_argument("--annotations", metavar="FILE", help="benchmark: its annotation file, as published")
    evaluate.add_argument("--videos", metavar="FOLDER", help="benchmark: where its videos are")
    evaluate.add_argument("--out", metavar="FILE", help="benchmark: write every figure as JSON")
    export = verb.add_parser("export", help="a run to a release folder with a model card")
    export.add_argument("run", metavar="RUN")
    export.add_argument("--out", required=True, metavar="RELEASE")
    generate = verb.add_parser("generate", help="write a text about one video")
    generate.add_argument("release", metavar="RELEASE")
    generate.add_argument("video", metavar="VIDEO")
    generate.add_argument("prompt", nargs="?", default="", help="a question; without one, a caption")
    generate.add_argument("--at", metavar="TEXT", help="answer from the moment of a long video that shows TEXT")
    generate.add_argument("--times", action="store_true", help="also the spans of the video that speak for the answer")
    search = verb.add_parser("search", help="rank the videos of a folder for a text")
    search.add_argument("release", metavar="RELEASE")
    search.add_argument("folder", metavar="FOLDER")
    search.add_argument("text")
    search.add_argument("--top", type=int, default=5, metavar="N", help="how many (default 5)")
    serve = verb.add_parser("serve", help="answer over HTTP: a page, and an interface shaped as OpenAI's")
    serve.add_argument("release", metavar="RELEASE")
    serve.add_argument("overrides", nargs="*", metavar="serve.field=value", help="limits, such as serve.max_mb=200")
    serve.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1; beyond loopback a token is needed")
    serve.add_argument("--port", type=int, default=8000)
    serve.add_argument("--token-file", metavar="FILE", help="what clients must send as bearer token (or: XGV_TOKEN)")
    serve.add_argument("--index", metavar="FOLDER", help="search the videos of a folder, which may be asked about, too")
    serve.add_argument("--allow", metavar="FOLDER", help="a folder whose videos may be asked about by path")
    serve.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a host to fetch videos from")
    serve.add_argument("--device", default="cpu", help="where the model runs: cpu (default), cuda, cuda:1, ...")


def _add_journey_verbs(verb: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    demo = verb.add_parser("demo", help="the whole journey on generated clips; run it again to resume")
    demo.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, not how well")
    demo.add_argument("--out", default=None, metavar="FOLDER", help="default runs/demo, or runs/demo-quick")
