"""`xgv plan`: one layout, a search over all, a comparison, a run's open figure, a timeline, or the rows of a file."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.plan.report import PlanReport, machine_of, on_gpus
from xgenvideo.plan.report import plan as plan_run
from xgenvideo.plan.search import Choice, Found
from xgenvideo.plan.solve import Solved
from xgenvideo.plan.timing import Machine

GIBIBYTE = 2.0**30
SHOWN = 10


def plan(parsed: argparse.Namespace, config_of: Callable[[argparse.Namespace], RunConfig]) -> None:
    """Do what the options ask for; exactly one of rows, search, compare, solving or a plain plan."""
    _sort_out(parsed)
    if parsed.rows is not None:
        _rows(parsed)
        return
    if parsed.recipe is None:
        raise ConfigError("RECIPE", None, "is missing: xgv plan RECIPE, or xgv plan --rows FILE.csv")
    config = config_of(parsed)
    if parsed.tokens_per_pair is not None:
        config = _with_tokens(config, parsed.tokens_per_pair)
    if (parsed.gpu or "").endswith(".json"):
        _calibrated(parsed, config)
        return
    machine = machine_of(parsed.gpu or "h100")
    gpus = config.layout.world if parsed.gpus is None else parsed.gpus
    asked = (parsed.tokens_per_pair, parsed.epochs, parsed.days)
    if parsed.search:
        _search(parsed, config, gpus, machine)
    elif parsed.compare:
        _compare(parsed, config, gpus)
    elif parsed.epochs is not None or parsed.days is not None:
        from xgenvideo.plan.solve import solve

        _print_solved(parsed, solve(config, gpus, machine, *asked))
    else:
        _one(parsed, config, gpus, machine)


def _sort_out(parsed: argparse.Namespace) -> None:
    """`--json` takes a file or nothing, so that it may have swallowed an override or the recipe; give those back."""
    if parsed.json and "=" in parsed.json:
        parsed.overrides = [parsed.json, *parsed.overrides]
        parsed.json = "-"
    elif parsed.json not in (None, "-") and parsed.recipe is None and parsed.rows is None:
        parsed.recipe, parsed.json = parsed.json, "-"
    if parsed.recipe and "=" in parsed.recipe and parsed.rows is None:
        parsed.overrides = [parsed.recipe, *parsed.overrides]
        parsed.recipe = None


def _calibrated(parsed: argparse.Namespace, config: RunConfig) -> None:
    """One process (or replica) of a machine that `xgv calibrate` measured."""
    from xgenvideo.plan.calibration import local_step, read_calibration
    from xgenvideo.plan.flops import training_flops

    for option in ("search", "compare", "epochs", "days", "timeline", "plots", "curated"):
        if getattr(parsed, option):
            raise ConfigError(f"--{option}", getattr(parsed, option), "is not worked out for a calibrated machine")
    calibration = read_calibration(Path(parsed.gpu))
    step = local_step(config, calibration)
    pairs, data = config.train.global_batch_pairs, config.data
    flops = training_flops(config, pairs, data.text_tokens, data.frames, 0).total
    share = flops / (step.total * config.layout.data * calibration.peak_flops_per_second)
    if parsed.json:
        _out(parsed, {**dataclasses.asdict(step), "step_seconds": step.total, "mfu": share})
    if parsed.json != "-":
        print(
            f"{config.name} on {calibration.machine}, {calibration.device}, {calibration.threads} threads, as measured"
        )
        print(f"  {step.total:.4g} s a step of {pairs} pairs, each {data.frames} frames and {data.text_tokens} tokens:")
        print(
            "  "
            + ", ".join(f"{name.replace('_', ' ')} {value:.3g} s" for name, value in dataclasses.asdict(step).items())
        )
        print(
            f"  {config.train.steps:,} steps: {config.train.steps * step.total / 60:.3g} min; "
            f"MFU {share:.1%} of the fastest product"
        )


def _with_tokens(config: RunConfig, tokens: int) -> RunConfig:
    from xgenvideo.config import override

    return override(config, [f"data.text_tokens={tokens}"])


def _out(parsed: argparse.Namespace, values: Any) -> None:
    """JSON to stdout, or written to the file that --json names."""
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    if parsed.json == "-":
        print(text, end="")
    else:
        Path(parsed.json).write_text(text, encoding="utf-8")


def _rows(parsed: argparse.Namespace) -> None:
    from xgenvideo.plan.rows import CONVENTION, MEMORY, predict_file

    found = predict_file(Path(parsed.rows))
    failed = [row for row in found if row["iter_s"] is None]
    if parsed.json:
        _out(parsed, found)
    if parsed.json != "-":
        print(f"{len(found) - len(failed)} of {len(found)} rows predicted; mem_gb_gpu: {MEMORY}; mfu_pct: {CONVENTION}")
        for row in found:
            defaults = f"  (assumed {'; '.join(row['defaults'])})" if row["defaults"] else ""
            if row["iter_s"] is None:
                print(f"  {row['run_id']}: cannot be predicted: {row['reason']}")
            else:
                band = f"{row['low']:.4g}-{row['high']:.4g}"
                print(
                    f"  {row['run_id']}: {row['iter_s']:.4g} s ({band}), {row['mem_gb_gpu']:.1f} GiB, "
                    f"MFU {row['mfu_pct']:.1f} %{defaults}"
                )


def _one(parsed: argparse.Namespace, config: RunConfig, gpus: int, machine: Machine) -> None:
    from xgenvideo.plan.render import render
    from xgenvideo.plan.report import to_json

    curated = None if parsed.curated is None else Path(parsed.curated)
    if curated and not config.data.pairs_expected:
        raise ConfigError("data.pairs_expected", 0, "must say how many pairs shall be kept")
    report = plan_run(config, gpus, machine.cluster.gpu.name, machine, curated)
    if parsed.json:
        _out(parsed, to_json(report))
    if parsed.json != "-":
        print(render(report))
    for folder, draw in ((parsed.timeline, _timeline), (parsed.plots, _plots)):
        if folder is not None:
            for line in draw(Path(folder), on_gpus(config, gpus), report, machine):
                if parsed.json != "-":
                    print(line)


def _timeline(folder: Path, config: RunConfig, report: PlanReport, machine: Machine) -> list[str]:
    """A trace and a picture of one step, the encoder over all ranks and, in a pipeline, in stage 0."""
    from xgenvideo.plan.pictures import timeline_svg, trace_text, write_text
    from xgenvideo.plan.render import PLACES
    from xgenvideo.plan.simulate import idle_share, simulate

    lines = ["", "Simulated step"]
    for estimate in report.estimates[:2]:
        placement = estimate.step.placement
        played = simulate(config, machine, placement)
        title = f"{report.recipe}, encoder {PLACES[placement]}: {played.seconds:.3f} s a step"
        write_text(folder / f"timeline_{placement}.json", trace_text(played))
        write_text(folder / f"timeline_{placement}.svg", timeline_svg(played, title))
        lines.append(
            f"  encoder {PLACES[placement]}: {played.seconds:.3f} s, {played.difference:+.1%} from the closed form, "
            f"ranks idle {idle_share(played, config.layout.pipeline):.0%}"
        )
    return [*lines, f"  {folder}/timeline_*.json opens in ui.perfetto.dev"]


def _plots(folder: Path, config: RunConfig, report: PlanReport, machine: Machine) -> list[str]:
    from xgenvideo.plan.pictures import days_svg, memory_svg, write_text

    points = []
    for factor in (0.25, 0.5, 1, 2, 4):
        try:
            found = plan_run(config, round(report.gpus * factor), machine.cluster.gpu.name, machine)
        except ConfigError:
            continue
        first = found.estimates[0]
        low, high = (first.bill.days * end / first.step.total for end in (first.low, first.high))
        points.append((found.gpus, first.bill.days, low, high))
    title = f"{report.recipe}: days for {report.steps:,} steps on {report.gpu.title}"
    write_text(folder / "days.svg", days_svg(points, title))
    stage = f"{report.recipe}: memory of one GPU by pipeline rank, {report.gpu.title}"
    write_text(folder / "memory.svg", memory_svg(report.memory, report.gpu.memory_bytes, stage))
    return [f"{folder}/days.svg and {folder}/memory.svg written"]


def _search(parsed: argparse.Namespace, config: RunConfig, gpus: int, machine: Machine) -> None:
    from xgenvideo.plan.search import search
    from xgenvideo.plan.timing import needs_text_pass

    found = search(config, gpus, machine)
    loose = dataclasses.replace(config, objective=dataclasses.replace(config.objective, contrastive_scope="microbatch"))
    inexact = search(loose, gpus, machine).choices[0] if needs_text_pass(config) else None
    if parsed.json:
        best = [_choice_values(choice) for choice in found.choices[:SHOWN]]
        own = None if found.own is None else _choice_values(found.own)
        stage = None if found.own_stage_0 is None else _choice_values(found.own_stage_0)
        values = {
            "tried": found.tried,
            "fitting": len(found.choices),
            "best": best,
            "own": own,
            "own_place": found.place,
        }
        loosest = None if inexact is None else _choice_values(inexact)
        _out(parsed, {**values, "own_stage_0": stage, "best_microbatch_contrastive": loosest})
    if parsed.json != "-":
        _print_found(config, gpus, machine, found, inexact)


def _choice_values(choice: Choice) -> dict[str, Any]:
    return {**dataclasses.asdict(choice), "step_seconds": choice.step.total, "label": choice.label}


def _print_found(config: RunConfig, gpus: int, machine: Machine, found: Found, inexact: Choice | None) -> None:
    tokens, title = config.data.text_tokens, machine.cluster.gpu.title
    print(
        f"{config.name} on {gpus} x {title}, {tokens:,} text tokens a pair, "
        f"batch {config.train.global_batch_pairs:,} pairs"
    )
    print(f"{found.tried:,} layouts tried, {len(found.choices):,} fit the memory; projected, encoder included:")
    for place, choice in enumerate(found.choices[:SHOWN], start=1):
        print(f"  {place:3} {_choice_line(choice)}")
    if found.own is not None:
        own = f"place {found.place} of {len(found.choices)}" if found.place else "does not fit"
        print(f"  the recipe's own layout: {own}")
        print(f"      {_choice_line(found.own)}")
    if found.own_stage_0 is not None:
        print(f"      {_choice_line(found.own_stage_0)}")
    if inexact is not None:
        print("  the best without the text pass, which the contrastive loss over the whole batch needs")
        print("  (objective.contrastive_scope=microbatch: other loss, fewer negatives):")
        print(f"      {_choice_line(inexact)}")


def _choice_line(choice: Choice) -> str:
    return (
        f"{choice.step.total:7.3f} s  MFU {choice.mfu:.1%} causal, {choice.mfu_quadratic:.1%} full square  "
        f"{choice.memory_bytes / GIBIBYTE:5.1f} GiB  {choice.label}"
    )


def _compare(parsed: argparse.Namespace, config: RunConfig, gpus: int) -> None:
    from xgenvideo.plan.render import table
    from xgenvideo.plan.solve import compare

    reports = compare(config, gpus)
    if parsed.json:
        from xgenvideo.plan.report import to_json

        _out(parsed, [to_json(report) for report in reports])
    if parsed.json != "-":
        rows: list[tuple[str, ...]] = [
            ("GPU", "GPUs", "fits", "step s", "90 %", "MFU full", "days", "MWh", "t CO2", "dollars")
        ]
        rows += [_compare_row(report) for report in reports]
        print("\n".join(table(rows)))


def _compare_row(report: PlanReport) -> tuple[str, ...]:
    first, bill = report.estimates[0], report.estimates[0].bill
    band = f"{first.low:.3g}-{first.high:.3g}"
    step = (f"{first.step.total:.3g}", band, f"{first.mfu_quadratic:.1%}")
    cost = (f"{bill.days:.3g}", f"{bill.kilowatt_hours / 1e3:,.1f}", f"{bill.co2_tonnes:,.1f}", f"{bill.dollars:,.0f}")
    return (report.gpu.name, str(report.gpus), "yes" if report.fits else "no", *step, *cost)


def _print_solved(parsed: argparse.Namespace, found: Solved) -> None:
    if parsed.json:
        _out(parsed, dataclasses.asdict(found))
    if parsed.json != "-":
        print(
            f"{found.text_tokens:,} tokens a pair, {found.epochs:.4g} epochs, {found.days:.4g} days "
            f"(solved for {found.solved}): {found.steps:,} steps of {found.step_seconds:.4g} s, "
            f"goodput {found.goodput:.2%}"
        )
