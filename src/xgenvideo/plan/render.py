"""A PlanReport as text for a terminal: counts first, then what rests on rates and assumptions, then the seed's."""

from collections.abc import Sequence

from xgenvideo.plan.curation import CORES, CurationPlan
from xgenvideo.plan.memory import FRAGMENTATION, GIBIBYTE, RUNTIME_BYTES, RankMemory
from xgenvideo.plan.report import Estimate, PlanReport
from xgenvideo.plan.seed import Implied, Reading

PREFIXES = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))


def render(report: PlanReport) -> str:
    """The report as lines of plain text, at most 120 wide."""
    layout, peak = report.layout, flop(report.gpu.bf16_flops_per_second)
    head = [
        f"{report.recipe} on {report.gpus} x {report.gpu.title} ({peak}/s dense bf16)",
        f"tensor {layout.tensor} x pipeline {layout.pipeline} x data {layout.data}, {layout.schedule}, "
        f"{layout.virtual_stages} virtual stage{'s' * (layout.virtual_stages > 1)}, "
        f"microbatch {layout.microbatch_pairs}",
        f"global batch {report.global_batch_pairs:,} pairs of "
        f"{report.text_tokens:,} text tokens and {report.frames} frames",
    ]
    parts = [
        head,
        _parameters(report),
        _flops(report),
        _cut(report),
        _memory(report),
        _estimates(report),
        _traffic(report),
        _operations(report),
    ]
    if report.curation is not None:
        parts.append(_curation(report.curation))
    if report.seed is not None:
        parts.append(_seed(report.seed))
    parts.append(["Notes", *(f"  {note}" for note in report.notes)])
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _parameters(report: PlanReport) -> list[str]:
    counted = report.parameters
    parts = (
        ("frozen encoder", counted.encoder),
        ("resampler", counted.resampler),
        ("embedding and head", counted.embedding_and_head),
        ("self-attention blocks", counted.self_blocks),
        ("cross-attention blocks", counted.cross_blocks),
        ("norms and projections", counted.norms_and_projections),
        ("total", counted.total),
        ("trainable", counted.trainable),
    )
    return ["Parameters (exact)", *table([(name, f"{count:,}") for name, count in parts])]


def _flops(report: PlanReport) -> list[str]:
    pair, step = report.pair_flops, report.step_flops
    rows = [
        ("", "a pair", "a step"),
        ("encoder, forward" + (" (cached)" * report.encoder_cached), flop(pair.encoder), flop(step.encoder)),
        ("trained parts, forward", flop(pair.trainable_forward), flop(step.trainable_forward)),
        ("training, causal attention halved", flop(pair.total), flop(step.total)),
        ("training, attention as full square", flop(pair.total_quadratic), flop(step.total_quadratic)),
    ]
    if report.text_pass_flops:
        each = report.text_pass_flops / report.global_batch_pairs
        rows.append(("text pass (extra, in no MFU)", flop(each), flop(report.text_pass_flops)))
    title = "FLOPs (2mnk a matrix product; encoder once, trained parts three times; no recomputation)"
    return [title, *table(rows)]


def flop(count: float) -> str:
    """A FLOP count with the prefix that leaves one to three digits before the point."""
    prefix, size = next(((prefix, size) for prefix, size in PREFIXES if count >= size), ("", 1.0))
    return f"{count / size:.2f} {prefix}FLOP"


def _cut(report: PlanReport) -> list[str]:
    found = report.cut
    labels = "  ".join(" | ".join(stage.label for stage in chunks) for chunks in found.ranks)
    return [
        "Pipeline (self/cross blocks by rank)",
        f"  {labels}",
        f"  slowest rank over the mean: {found.slowest_over_mean:.3f}; "
        f"{found.slowest_over_mean_without_head:.3f} if the head were spread over all stages",
        f"  bubble: {found.bubble:.1%} of the decoder's time, microbatches a step: {found.microbatches}",
    ]


def _memory(report: PlanReport) -> list[str]:
    limit = report.gpu.memory_bytes
    header = (
        "rank",
        "weights",
        "gradients",
        "optimizer",
        "encoder",
        "visual act.",
        "decoder act.",
        "buffers",
        "total",
        "",
    )
    rows = [header, *(_memory_row(rank, limit) for rank in report.memory)]
    first = report.memory_stage_0_encoder[0]
    margins = f"{RUNTIME_BYTES / GIBIBYTE:.0f} GiB runtime and {FRAGMENTATION:.0%} fragmentation (assumed)"
    lines = [f"Memory by pipeline rank, GiB of {limit / GIBIBYTE:.1f}; total includes {margins}", *table(rows)]
    if report.layout.pipeline > 1 and not report.encoder_cached:
        lines.append(f"  with the encoder in stage 0, rank 0 would hold {first.total / GIBIBYTE:.1f} GiB")
    return lines


def _memory_row(rank: RankMemory, limit: float) -> tuple[str, ...]:
    kinds = (
        rank.weights,
        rank.gradients,
        rank.optimizer,
        rank.encoder,
        rank.visual_activations,
        rank.decoder_activations,
        rank.buffers,
        rank.total,
    )
    verdict = "fits" if rank.total <= limit else "DOES NOT FIT"
    return (str(rank.rank), *(f"{kind / GIBIBYTE:.2f}" for kind in kinds), verdict)


PLACES = {
    "all_ranks": "over all ranks",
    "stage_0": "in stage 0",
    "separate": "on ranks of its own",
    "cached": "cached features",
}


def _estimates(report: PlanReport) -> list[str]:
    rows: list[tuple[str, ...]] = [
        (
            "visual part",
            "GPUs",
            "visual s",
            "text s",
            "decoder s",
            "other s",
            "step s",
            "90 %",
            "MFU causal",
            "full",
            "days",
        )
    ]
    rows += [_estimate_row(report, estimate) for estimate in report.estimates]
    lines = [
        "Time of a step, from rates fitted on published runs; 90 % of left-out runs fell within the range",
        *table(rows),
    ]
    places = {estimate.step.placement: estimate for estimate in report.estimates}
    everywhere, first = places["all_ranks"], places.get("stage_0")
    if first is not None:
        lines.append(
            f"  in stage 0 a step takes {first.step.total / everywhere.step.total:.1f} times as long; "
            f"by FLOPs an even pipeline {report.encoder_slow_down_even:.1f} times"
        )
        shares = "; ".join(f"{PLACES[each.step.placement]} {_range(each)}" for each in (everywhere, first))
        lines.append(f"  MFU, full square, with its 90 % range: {shares}")
        lines.append("  MFU counts the encoder's forward; of cached features it does not (they were encoded before)")
    parts = everywhere.step
    lines.append(
        f"  first row, not hidden: bubble {parts.fill:.3g} s, messages {parts.messages:.3g} s, "
        f"gradients {parts.data:.3g} s, optimizer {parts.optimizer:.3g} s, waiting {parts.jitter:.3g} s"
    )
    return lines


def _range(estimate: Estimate) -> str:
    step = estimate.step.total
    low, high = (estimate.mfu_quadratic * step / end for end in (estimate.high, estimate.low))
    return f"{estimate.mfu_quadratic:.1%} ({low:.1%} to {high:.1%})"


def _estimate_row(report: PlanReport, estimate: Estimate) -> tuple[str, ...]:
    step = estimate.step
    other = step.fill + step.messages + step.join + step.data + step.optimizer + step.jitter
    name = PLACES[step.placement] if report.layout.pipeline > 1 and not report.encoder_cached else "on its GPU"
    seconds = (f"{part:.3g}" for part in (step.visual, step.text_pass, step.decoder, other, step.total))
    band = f"{estimate.low:.3g}-{estimate.high:.3g}"
    shares = (f"{estimate.mfu:.1%}", f"{estimate.mfu_quadratic:.1%}") if step.placement != "cached" else ("-", "-")
    return (name, str(estimate.gpus), *seconds, band, *shares, f"{estimate.bill.days:.3g}")


def _traffic(report: PlanReport) -> list[str]:
    rows = [("kind", "link", "GB a step"), *((t.kind, t.link, f"{t.bytes_per_step / 1e9:.3g}") for t in report.traffic)]
    return ["Traffic: what the busiest GPU sends in a step", *table(rows)] if report.traffic else []


def _operations(report: PlanReport) -> list[str]:
    saved, bill, data = report.checkpoints, report.estimates[0].bill, report.data
    lines = [
        "The run around its steps (assumptions are named in plan/operations.py)",
        f"  checkpoint {saved.size_bytes / 1e9:,.1f} GB, stalls {saved.stall_seconds:.2g} s, "
        f"written in {saved.write_seconds:.3g} s; a failure every {saved.failure_hours:,.0f} h",
        f"  best saved every {saved.best_interval_seconds / 60:.3g} min ({saved.best_interval_steps:,} steps): goodput "
        f"{saved.goodput:.2%}; every {saved.recipe_interval_steps:,} steps: {saved.goodput_at_recipe_interval:.2%}",
        f"  loaders bring {data.pairs_per_second:,.1f} pairs/s, {data.bytes_per_second / 1e9:.3g} GB/s in all",
        f"  {bill.steps:,} iterations: {bill.days:.3g} days, {bill.gpu_hours:,.1f} GPU-hours, "
        f"{bill.kilowatt_hours:,.1f} kWh, {bill.co2_tonnes:,.3g} t CO2, ${bill.dollars:,.0f}",
    ]
    if report.pairs_expected:
        lines.append(f"  {report.pairs_expected:,} pairs seen once are {report.iterations_per_epoch:,} iterations")
    return lines


def _curation(found: CurationPlan) -> list[str]:
    rows = [("", "inputs come", "are left", "core-hours")]
    rows += [
        (step.name, f"{step.came:,.0f}", f"{step.left:,.0f}", f"{step.core_hours:,.0f}")
        for step in found.steps
        if step.core_hours >= 1
    ]
    asked = "; ".join(f"{name} {hours:,.0f}" for name, hours in found.core_hours_if_asked.items())
    bytes_of = (("of videos to read", found.video_bytes), ("of decoded clips", found.clip_bytes))
    sizes = [f"{count / 1e12:,.3g} TB {what}" for what, count in (*bytes_of, ("of shards", found.shard_bytes)) if count]
    return [
        f"Curation of {found.pairs:,} pairs, if {found.measured_kept} of {found.measured_inputs} are kept as of",
        f"  {found.measured_on}",
        *table(rows),
        f"  {found.inputs:,.0f} inputs, {found.core_hours:,.0f} core-hours; no GPU-hours; without fetching",
        f"  {found.days():.3g} days of {CORES:,} cores, of which {found.alone_hours:,.0f} hours of one process alone: "
        "reading, comparing, publishing",
        *([f"  {', '.join(sizes)}"] if sizes else []),
        *([f"  core-hours more, where asked for: {asked}"] if asked else []),
    ]


def _seed(seed: Implied) -> list[str]:
    stated = seed.stated
    causal, full = seed.flops_per_pair
    return [
        f"The stated run ({stated.days:.0f} days, {stated.gpus} x {stated.gpu.name.upper()}, "
        f"stated target {stated.mfu:.1%} MFU, {stated.pairs:,} pairs): what it implies",
        f"  compute of the stated run: {seed.flops:.3g} FLOP; short captions seen once cannot use it up:",
        f"  every pair seen once: {seed.iterations_per_epoch:,} iterations of {seed.seconds_per_iteration_once:.1f} s, "
        f"{flop(seed.flops_per_pair_once)} a pair",
        f"  this model at {seed.text_tokens:,} text tokens: {flop(causal)} a pair (causal), {flop(full)} (full square)",
        "  Consistent readings (causal / full square):",
        *table(
            [
                (
                    "",
                    "tokens a pair",
                    "epochs",
                    "iterations",
                    "s an iteration",
                    f"{stated.checkpoint_iterations:,} iterations",
                ),
                _reading_row("many epochs of short text", seed.many_epochs),
                _reading_row("one epoch of long text", seed.one_epoch),
            ]
        ),
    ]


def _reading_row(name: str, reading: Reading) -> tuple[str, ...]:
    return (
        name,
        _both(reading.text_tokens, ",.0f"),
        _both(reading.epochs, ".1f"),
        _both(reading.iterations, ",.0f"),
        _both(reading.seconds_per_iteration, ".2f"),
        _both(reading.checkpoint_hours, ".1f") + " h",
    )


def _both(values: tuple[float, float], form: str) -> str:
    causal, full = (format(value, form) for value in values)
    return causal if causal == full else f"{causal} / {full}"
