"""The table of docs/benchmarks.md, from the files in bench/results: the last step of `make bench`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table of make bench -->", "<!-- end of table -->"

MEASURED_BY_FRAMES = {"train_seconds": "training step", "decode_seconds": "32 new tokens", "added_mb": "memory"}

Row = tuple[str, str, str]


def startup(found: Any) -> Iterator[Row]:
    """Commands and imports."""
    for name, row in found["seconds"].items():
        if name.startswith(("xgv", "import")):
            memory = f", {row['peak_mb']:.0f} MB" if "peak_mb" in row else ""
            yield f"`{name}`", f"{row['median_seconds']:.2f} s{memory}", "`make bench-startup`"


def planner(found: Any) -> Iterator[Row]:
    """How far the planner is off."""
    command = "`make planner-report`"
    for name, row in found["step_seconds_per_cent_off"].items():
        what = f"planner, step seconds of {row['rows']} published runs ({name}) not seen in the fit: mean error"
        yield what, f"{row['left_out']:.1f} % ({row['constant_mfu']:.1f} % by one constant MFU)", command
    memory = found["memory_with_margin_per_cent_off"]
    yield f"planner, memory of {memory['rows']} published runs: mean error", f"{memory['mean']:.1f} %", command
    picked = found["layout_picked_per_cent_over_best"]
    what = f"planner, layout picked among the measured ones over the best, {picked['groups']} groups: median and worst"
    yield what, f"{picked['median']:.1f} and {picked['worst']:.1f} %", command


def first_step(found: Any) -> Iterator[Row]:
    """From the command to the first optimizer step."""
    command, median = "`make bench-first-step`", found["median"]
    low, high = found["seconds_spread"]
    what = "`xgv train tiny`, fresh process, features made before"
    yield f"{what}: time to the end of the first step", f"{median['seconds']:.1f} s ({low:.1f} to {high:.1f})", command
    yield f"{what}: processor time of a run of one step", f"{median['cpu_seconds']:.1f} s", command
    yield f"{what}: peak memory of a run of one step", f"{median['peak_mb']:.0f} MB", command


def step(found: Any) -> Iterator[Row]:
    """The training step beside transformers'."""
    for name, row in found["rows"].items():
        low, middle, high = row["times_as_fast_quartiles"]
        peer, _, how = name.partition(", ")
        what = f"decoder's training step, transformers' {peer.capitalize()} over ours, equal dimensions, one thread"
        what += f", {how}" if how else ""
        yield what, f"{middle:.2f} ({low:.2f} to {high:.2f})", "`make bench-step`"


def frames(found: Any) -> Iterator[Row]:
    """Latents against tokens in the sequence."""
    about, last = found["about"], found["rows"][-1]
    other, ours = last["tokens in the sequence"], last["latents"]
    command = "`make bench-frames`"
    for row in found["rows"][:-1]:
        ratios = [row["tokens in the sequence"][key] / row["latents"][key] for key in MEASURED_BY_FRAMES]
        told = f"{row['frames']} frames, visual tokens in the sequence over ours: training step, 32 new tokens, memory"
        yield told, ", ".join(f"{ratio:.1f}" for ratio in ratios) + " times", command
    flat = about["our_language_model_cost_last_over_first"]
    span = f"{found['rows'][0]['frames']} to {last['frames']} frames"
    yield f"our language model's training step, {span}", f"{flat:.2f} times", command
    for key, what in MEASURED_BY_FRAMES.items():
        told = f"{what} at {last['frames']} frames, visual tokens in the sequence over ours"
        yield told, f"{other[key] / ours[key]:.1f} times", command
    crossing = about["frames_from_which_ours_trains_faster"]
    yield "frames from which our training step is the faster (8 is the least measured)", f"{crossing}", command


def checkpoints(found: Any) -> Iterator[Row]:
    """The stall of a save."""
    size = f"{found['bytes'] / 1e6:.0f} MB"
    for key, what in (("stall_over_clone", "a plain clone"), ("stall_over_dcp_async", "DCP's async_save")):
        ratio = found[key]
        told = f"{ratio[1]:.2f} ({ratio[0]:.2f} to {ratio[2]:.2f})" if isinstance(ratio, list) else f"{ratio:.2f}"
        yield f"stall of a save over {what}, {size}", told, "`make bench-checkpoints`"


def infer(found: Any) -> Iterator[Row]:
    """Decoding beside transformers.generate."""
    for row in found["rows"]:
        low, middle, high = row["speedup_quartiles"]
        what = f"decoding, transformers.generate over ours, same tiny weights, batch of {row['batch']}"
        yield what, f"{middle:.2f} ({low:.2f} to {high:.2f})", "`make bench-infer`"


def placement(found: Any) -> Iterator[Row]:
    """Where the encoder runs."""
    low, middle, high = found["ratio_own_core"]
    what = "encoder in the first stage over all ranks, PP4, processor seconds in the order of the step"
    yield what, f"{middle:.2f} ({low:.2f} to {high:.2f})", "`make bench-placement`"
    for row in found["simulated_30b_on_512_h100"]:
        what = f"the same for the 30 B layout on 512 H100, {row['text_tokens']} text tokens, simulated"
        yield what, f"{row['ratio']:.2f}", "`make bench-placement`"


def data(found: Any) -> Iterator[Row]:
    """The loader beside others."""
    for clips, row in found["rows"].items():
        for workers, sides in row["workers"].items():
            for name, side in sides.items():
                if name == "ours":
                    continue
                low, high = side["quartiles"]
                other = "decoding the source with PyAV" if name == "source" else name
                what = f"loader, pairs a second over {other}, {clips}, {workers}"
                yield what, f"{side['ours_times_as_fast']:.2f} ({low:.2f} to {high:.2f})", "`make bench-data`"


def curation(found: Any) -> Iterator[Row]:
    """Curation beside other ways."""
    command = "`make bench-curation`"
    for clips, row in found["sets"].items():
        for processes, sides in row["processes"].items():
            where = f"{row['clips']} {clips}, {processes}"
            for name, side in sides.items():
                if "busy_over_ours" in side:
                    low, high = side["busy_over_ours_spread"]
                    what = f"curation, processor seconds of {name} over ours of comparable steps, {where}"
                    yield what, f"{side['busy_over_ours']:.2f} ({low:.2f} to {high:.2f})", command
                told = f"{side['processor_ms_a_clip']:.0f} ms, {side['wall_ms_a_clip']:.0f} ms, {side['peak_mb']} MB"
                yield f"curation, {name}, processor and wall a clip, peak memory, {where}", told, command


def curation_clips(found: Any) -> Iterator[Row]:
    """Many clips with pixels."""
    command, clips = "`make bench-curation-clips`", f"{found['clips']:,} generated clips"
    yield f"{clips} curated: peak memory of all processes", f"{found['peak_mb']:,} MB", command
    yield f"{clips} curated: processor time", f"{found['processor_seconds'] / 3600:.2f} h", command
    for step in found["steps"]:
        what = f"{clips} curated: inputs of `{step['step']}` a second of one core"
        yield what, f"{step['inputs_a_second_of_a_core']:,.0f}", command
    right, dropped, planted = (sum(d[k] for d in found["filters"].values()) for k in ("right", "dropped", "planted"))
    rates = f"{right / dropped:.3f} and {right / planted:.3f}"
    yield f"{clips} curated: precision and recall of all filters, {planted:,} planted defects", rates, command


def parity(found: Any) -> Iterator[Row]:
    """Layouts against one process."""
    for dtype in ("float64", "float32"):
        rows = [row for row in found["rows"] if row["dtype"] == dtype]
        worst = max(row["max_loss_difference"] for row in rows)
        yield f"largest difference of a loss, {len(rows)} layouts, {dtype}", f"{worst:.1e}", "`make parity`"


def chaos(found: Any) -> Iterator[Row]:
    """Kills."""
    kills = f"{found['kill_points']} kills, {found['kill_points_in_save']} inside a save"
    lost = f"{found['samples_lost']} and {found['samples_replayed']}"
    yield f"samples lost and replayed in {kills}", lost, "`make chaos`"
    good = f"{found['goodput']:.3f} ({found['goodput_predicted']:.3f} predicted)"
    yield "goodput while being killed every few seconds", good, "`make chaos`"


def gpu(found: Any) -> Iterator[Row]:
    """The slice on a GPU."""
    command, kinds = "`make bench-gpu`", ("mfu_of_measured_peak", "mfu_of_h100_product", "mfu_of_data_sheet")
    for row in found["rows"]:
        what = f"{row['what']}: full-square MFU of the peak measured here, of 790 TFLOP/s, of the data sheet"
        yield what, ", ".join(f"{row[kind]:.1%}" for kind in kinds), command
        if row["planned_gb"] is not None:
            yield f"{row['what']}: memory, and planned", f"{row['peak_gb']:.1f} and {row['planned_gb']:.1f} GB", command
    for what, ratio in found["fp8_over_bf16"].items():
        yield f"{what}: tokens a second, fp8 over bf16", f"{ratio:.2f}", command
    yield "one_gpu: share of a step that waits for its batch", f"{found['one_gpu_waits_for_data']:.1%}", command


READERS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "startup": startup,
    "planner": planner,
    "first_step": first_step,
    "step": step,
    "frames": frames,
    "checkpoints": checkpoints,
    "infer": infer,
    "placement": placement,
    "data": data,
    "curation": curation,
    "curation_clips": curation_clips,
    "parity": parity,
    "chaos": chaos,
    "gpu": gpu,
}


def table() -> str:
    """Every row whose results are there."""
    lines = ["| what | measured | command |", "|---|---|---|"]
    for name, reader in READERS.items():
        path = RESULTS / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            lines += [f"| {' | '.join(row)} |" for row in reader(found)]
    return "\n".join(lines)


def main() -> None:
    """Put the table into the page, between its two marks."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = table()
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
