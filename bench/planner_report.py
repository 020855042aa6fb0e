"""Refit the planner's rates and print how far it is off on published runs: `make planner-report`.

Writes src/xgenvideo/plan/facts/rates.json and bench/results/planner.json. Every error printed is of rows that the rates
had not seen, unless it says "all rows"; beside it stands what one constant utilisation, fitted the same way, would have
given.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from fair import RESULTS
from fair import write as write_results
from planner_others import calculon_errors, installed, llm_analysis_errors

from xgenvideo.plan.fit import fit, in_folds, leave_one_out, log_errors, usable
from xgenvideo.plan.published import Published, published_runs, read_file
from xgenvideo.plan.rates import Rates
from xgenvideo.plan.textmemory import GIBIBYTE, text_memory
from xgenvideo.plan.textrun import TextRun

OUT = Path(__file__).parents[1] / "src/xgenvideo/plan/facts/rates.json"
TARGETS = {"vtrain": 9.0, "sc21": 6.0, "korth": 4.0, "H100 rows": 8.0, "bloom": 11.0}
MEMORY_TARGET, MEMORY_UNDER = 12.0, 5.0
PICK_MEDIAN, PICK_WORST = 3.0, 10.0


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=Path, help="other runs than those shipped: fit and report on these")
    parser.add_argument("--out", type=Path, default=OUT, help="where the rates go")
    parser.add_argument("--results", type=Path, default=RESULTS / "planner.json", help="where the errors go")
    arguments = parser.parse_args()
    rows = read_file(arguments.rows) if arguments.rows else published_runs()
    rates = fit(rows)
    families = {row.family: row.family for row in rows}
    out = leave_one_out(rows, rates, families)
    hopper = {row.name: row.run.cluster.gpu.hopper for row in rows if row.run}
    print_rates(rates)
    print_times(usable(rows), rates, out, in_folds(rows, rates), hopper)
    print_without_hopper(rows, rates)
    print_memory(rows)
    print_picks(usable(rows), rates, out)
    if not arguments.rows:
        write_results(arguments.results, figures(rows, out, hopper))
    write(arguments.out, rates, {"ampere": spread(out, hopper, False), "hopper": spread(out, hopper, True)})
    print(f"\nwritten: {arguments.out}")


def print_rates(rates: Rates) -> None:
    """Each fitted rate beside its starting value."""
    print("Rate                             start    fitted")
    for name, value in dataclasses.asdict(rates).items():
        print(f"  {name:30} {getattr(Rates(), name):6.4g}  {value:8.4g}")


def print_times(
    rows: Sequence[Published],
    rates: Rates,
    out: dict[str, float],
    folds: dict[str, float],
    hopper: dict[str, bool],
) -> None:
    """Mean absolute error of step seconds by family, left out and with all rows, beside one constant utilisation."""
    inside = dict(zip([row.name for row in rows], log_errors(rows, rates), strict=True))
    print(
        "\nStep seconds, per cent off      family left out     row left out  all rows  constant   llm-          target"
    )
    print(
        "                         rows   mean   bias  worst   (five folds)     seen       MFU  analysis calculon (rows)"
    )
    others = [
        llm_analysis_errors(rows) if installed("llm_analysis") else {},
        calculon_errors(rows) if installed("calculon") else {},
    ]
    groups = {family: [row for row in rows if row.family == family] for family in dict.fromkeys(r.family for r in rows)}
    groups["H100 rows"] = [row for row in rows if hopper[row.name]]
    for name, chosen in groups.items():
        if not chosen:
            continue
        errors = [100 * math.expm1(out[row.name]) for row in chosen]
        seen, folded = (mean(100 * abs(math.expm1(errs[row.name])) for row in chosen) for errs in (inside, folds))
        constant = mean(constant_error(row, rows) for row in chosen)
        other = " ".join(mean_error(chosen, errors) for errors in others)
        missed = mean(map(abs, errors))
        reached = "reached" if missed <= TARGETS.get(name, math.inf) else "NOT REACHED"
        verdict = f"{TARGETS[name]:6.0f} {reached}" if name in TARGETS else ""
        print(
            f"  {name:20} {len(chosen):6} {missed:6.1f} {mean(errors):+6.1f} {max(map(abs, errors)):6.0f} "
            f"{folded:14.1f} {seen:8.1f} {constant:9.1f} {other}   {verdict}"
        )
    if not all(others):
        print("  llm-analysis or calculon cannot be imported: bench/planner_others.py says where they come from")


def mean_error(rows: Sequence[Published], errors: dict[str, float]) -> str:
    """Another planner's mean on a family, over the rows that it can describe; their number where not all."""
    known = [errors[row.name] for row in rows if row.name in errors]
    if not known:
        return "       -"
    return f"{mean(known):8.1f}" + ("" if len(known) == len(rows) else f" ({len(known)})")


def constant_error(row: Published, rows: Sequence[Published]) -> float:
    """Per cent that a row is off by the median hardware utilisation of the other families on its kind of GPU."""
    others = [
        other
        for other in rows
        if other.family != row.family and run_of(other).cluster.gpu.hopper == run_of(row).cluster.gpu.hopper
    ]
    if not others or not row.measured_seconds:
        return math.nan
    share = median(peak_seconds(run_of(other)) / (other.measured_seconds or math.nan) for other in others)
    return 100 * abs(peak_seconds(run_of(row)) / share / row.measured_seconds - 1)


def run_of(row: Published) -> TextRun:
    """The run of a usable row."""
    assert row.run is not None, f"{row.name} has no run: {row.reason}"
    return row.run


def peak_seconds(run: TextRun) -> float:
    """Seconds of a step at the peak, a full recomputation counted as a fourth forward, fp8 at its own peak."""
    gpu = run.cluster.gpu
    peak = gpu.fp8_flops_per_second if run.fp8 else gpu.bf16_flops_per_second
    return run.model_flops() * (4 / 3 if run.recompute == "full" else 1) / (run.gpus * peak)


def print_without_hopper(rows: Sequence[Published], rates: Rates) -> None:
    """The hardest question: no H100 row at all, so Hopper's rates are their starting values."""
    kinds = {row.name: "hopper" if row.run and row.run.cluster.gpu.hopper else "ampere" for row in rows}
    seen = fit([row for row in rows if kinds[row.name] == "ampere"], rates)
    left = [row for row in usable(rows) if kinds[row.name] == "hopper"]
    if left and len(left) < len(usable(rows)):
        errors = [100 * math.expm1(error) for error in log_errors(left, seen)]
        missed, bias = mean(map(abs, errors)), mean(errors)
        print(f"  every H100 row left out at once: {missed:.1f} (bias {bias:+.1f}); a data sheet and starts alone")


def print_memory(rows: Sequence[Published]) -> None:
    """Error of the memory on the fullest GPU, with and without the margin."""
    found = [(row, text_memory(run_of(row))) for row in rows if row.run and row.measured_gigabytes]
    if not found:
        return
    measured = {row.name: (row.measured_gigabytes or math.nan) * GIBIBYTE for row, _ in found}
    bare = [100 * (memory.estimate / measured[row.name] - 1) for row, memory in found]
    planned = [100 * (memory.total / measured[row.name] - 1) for row, memory in found]
    under = [(row.name, error) for (row, _), error in zip(found, planned, strict=True) if error < -MEMORY_UNDER]
    missed = mean(map(abs, planned))
    reached = "reached" if missed <= MEMORY_TARGET else "NOT REACHED"
    print(f"\nMemory, {len(found)} rows: {mean(map(abs, bare)):.1f} % off before the margin;")
    print(f"  with it {missed:.1f} % (target {MEMORY_TARGET:.0f}: {reached})")
    listed = ", ".join(f"{name} {error:+.0f} %" for name, error in under) or "none: reached"
    print(f"  under by more than {MEMORY_UNDER:.0f} % after the margin: {listed}")
    if any(name == "bloom_10" for name, _ in under):
        print("  (bloom_10 is published with 65 GB, bloom_06 of the same layout with 44, for 8 % less state)")


def print_picks(rows: Sequence[Published], rates: Rates, out: dict[str, float]) -> None:
    """What the layout picked among the measured ones of the same model, batch and GPUs costs over the best."""
    inside = dict(zip([row.name for row in rows], (float(error) for error in log_errors(rows, rates)), strict=True))
    for title, errors in (("left out", out), ("all rows", inside)):
        costs = sorted(picked_costs(rows, errors), reverse=True)
        if not costs:
            return
        middle, (worst, names) = median(cost for cost, _ in costs), costs[0]
        reached = "reached" if middle <= PICK_MEDIAN and worst <= PICK_WORST else "NOT REACHED"
        print(
            f"\nLayout picked, {title}, {len(costs)} groups of measured layouts: {middle:.1f} % over the best (median),"
        )
        print(f"  {worst:.1f} % worst ({names}); targets {PICK_MEDIAN:.0f} and {PICK_WORST:.0f}: {reached}")
    print(
        "  (rows of one source differ by as much as that: bloom_36 took 113 s, bloom_07 121 s for 1.3 times the batch;"
    )
    print("  vtrain_030 to 032, one layout with microbatches 8, 4 and 2, took 10.9, 11.0 and 10.0 s)")


def picked_costs(rows: Sequence[Published], errors: dict[str, float]) -> list[tuple[float, str]]:
    """Per cent over the best measured layout, and the names of pick and best, for every group of comparable rows."""
    same: dict[tuple[object, ...], list[Published]] = {}
    for row in rows:
        run = run_of(row)
        key = (row.family, run.shape, run.layers, run.sequence, run.batch, run.gpus, run.fp8, run.software.eager)
        same.setdefault(key, []).append(row)
    costs = []
    for group in same.values():
        if len({layout_of(row) for row in group}) > 1:
            seconds = {row.name: row.measured_seconds or math.nan for row in group}
            best = min(seconds, key=lambda name: seconds[name])
            picked = min(seconds, key=lambda name: seconds[name] * math.exp(errors[name]))
            costs.append((100 * (seconds[picked] / seconds[best] - 1), f"{picked} for {best}"))
    return costs


def layout_of(row: Published) -> tuple[int, ...]:
    """What differs between two layouts."""
    run = run_of(row)
    return run.tensor, run.pipeline, run.virtual, run.context, run.data, run.sequences


def spread(out: dict[str, float], hopper: dict[str, bool], wanted: bool) -> tuple[float, float]:
    """Factors from a prediction to the 5th and 95th percentile of what left-out runs measured."""
    factors = sorted(math.exp(-error) for name, error in out.items() if hopper[name] is wanted)
    if not factors:
        return 0.8, 1.25
    return factors[int(0.05 * (len(factors) - 1))], factors[math.ceil(0.95 * (len(factors) - 1))]


def figures(rows: Sequence[Published], out: dict[str, float], hopper: dict[str, bool]) -> dict[str, Any]:
    """What the table of all benches shows: mean errors in per cent by family left out, of memory, and of picks."""
    known = usable(rows)
    groups = {family: [row for row in known if row.family == family] for family in TARGETS}
    groups["H100 rows"] = [row for row in known if hopper[row.name]]
    steps = {
        name: {
            "rows": len(chosen),
            "left_out": round(mean(100 * abs(math.expm1(out[row.name])) for row in chosen), 1),
            "constant_mfu": round(mean(constant_error(row, known) for row in chosen), 1),
        }
        for name, chosen in groups.items()
    }
    sized = [(row, row.measured_gigabytes) for row in rows if row.run and row.measured_gigabytes]
    memory = [100 * abs(text_memory(run_of(row)).total / (size * GIBIBYTE) - 1) for row, size in sized]
    costs = [cost for cost, _ in picked_costs(known, out)]
    return {
        "step_seconds_per_cent_off": steps,
        "memory_with_margin_per_cent_off": {"rows": len(memory), "mean": round(mean(memory), 1)},
        "layout_picked_per_cent_over_best": {"groups": len(costs), "median": median(costs), "worst": max(costs)},
    }


def write(path: Path, rates: Rates, spreads: dict[str, tuple[float, float]]) -> None:
    """The rates and the spread as JSON, with where they are from."""
    values = {
        "from": "make planner-report, on src/xgenvideo/plan/facts/published_runs.csv",
        "rates": {name: float(f"{value:.5g}") for name, value in dataclasses.asdict(rates).items()},
        "spread": {name: [round(low, 4), round(high, 4)] for name, (low, high) in spreads.items()},
    }
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
