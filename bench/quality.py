"""What the recipe's choices are worth: held-out accuracy at equal training FLOPs, one choice changed at a time.

Run: make bench-quality. Each run trains the recipe `tiny` with one change on the demonstration's generated clips, for
as many steps as cost what the recipe's own run costs (the planner's count: encoder once, trainable parts three times,
causal attention half, at the mean length of the clips), and is measured on the held-out clips. Every run writes its
result to the work folder, and the same command again goes on with those that are missing. What is there goes to
bench/results/quality.json and into the table of docs/benchmarks.md; a choice with all its seeds gets a verdict.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fair
import torch

from xgenvideo.checkpoint import load_run
from xgenvideo.config import RunConfig, override
from xgenvideo.data.dataset import Dataset, open_dataset
from xgenvideo.data.features import FeatureCache
from xgenvideo.demo.journey import FULL
from xgenvideo.demo.stages import write_json
from xgenvideo.demo.steps import curate_clips, make_clips
from xgenvideo.evaluate.run import evaluate
from xgenvideo.models.vision import encoder_hash
from xgenvideo.plan.flops import training_flops
from xgenvideo.recipes import find
from xgenvideo.train.loop import FEATURES, train

STEPS, SEEDS = 320, 3
RESULTS = fair.RESULTS / "quality.json"
PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- table of make bench-quality -->", "<!-- end of the quality table -->"
FIGURES = {
    "temporal_qa": "temporal questions",
    "twin_choice": "twin choice",
    "retrieval_t2v_r1": "R@1, text to video",
    "heldout_loss": "held-out loss",
}
LESS_IS_BETTER = ("heldout_loss",)


@dataclass(frozen=True)
class Choice:
    """One change of the recipe: its file name, what the table calls it, and its settings."""

    name: str
    title: str
    settings: tuple[str, ...]


RECIPE = Choice("recipe", "the recipe", ())
CHOICES = (
    RECIPE,
    Choice("queries_8", "8 queries", ("model.resampler.queries=8",)),
    Choice("queries_128", "128 queries", ("model.resampler.queries=128",)),
    Choice("slot_time", "the frame's number as its time", ("model.resampler.time=slot",)),
    Choice(
        "contrastive_8",
        "contrastive loss within microbatches of 8",
        ("objective.contrastive_scope=microbatch", "layout.microbatch_pairs=8"),
    ),
    Choice("cross_first", "one cross block, before layer 2", ("model.decoder.cross_blocks=1",)),
    Choice(
        "cross_last",
        "one cross block, before layer 3",
        ("model.decoder.cross_blocks=1", "model.decoder.cross_placement=last"),
    ),
    Choice("gate_lr_1", "gates at the common learning rate", ("optimizer.gate_lr_scale=1",)),
    Choice("no_gates", "no gates", ("model.decoder.gate_start=20",)),
)
# The numbers of queries of large models: many times the recipe's own.
LARGE = tuple(Choice(f"queries_{n}", f"{n} queries", (f"model.resampler.queries={n}",)) for n in (64, 256, 1024))


def dataset_of(folder: Path) -> Dataset:
    """The generated clips, curated: the demonstration's, made here where they are missing."""
    dataset = folder / "curated" / "dataset"
    if not (dataset / "dataset.json").is_file():
        make_clips(folder / "raw", FULL.clips, FULL.seed, FULL.defect_share)
        curate_clips(folder / "raw", dataset, find("tiny"), print)
    return open_dataset(dataset)


def run_flops(config: RunConfig, frames: float) -> float:
    """Training FLOPs of the whole run at `frames` frames a clip, the encoder counted as if nothing were cached."""
    pairs = config.train.steps * config.train.global_batch_pairs
    return training_flops(config, pairs, config.data.text_tokens, frames, round(pairs * frames)).total


def config_of(choice: Choice, seed: int, steps: int, shards: Path, frames: float) -> RunConfig:
    """The run of a choice, as many steps long as the FLOPs of `steps` steps of the recipe allow."""
    shared = [f"data.shards={shards}", "train.threads=1", "train.compile=true", "train.save_every_steps=100000"]
    recipe = override(find("tiny"), [*shared, f"train.seed={seed}", f"train.steps={steps}"])
    changed = override(recipe, list(choice.settings))
    return override(changed, [f"train.steps={round(steps * run_flops(recipe, frames) / run_flops(changed, frames))}"])


def measured(choice: Choice, seed: int, config: RunConfig, dataset: Dataset, folder: Path) -> dict[str, Any]:
    """Train one run and measure it; the run folder goes when the result is there."""
    began = time.process_time()
    torch.compiler.reset()  # or the blocks of the last choice would count as another shape of this one's
    summary = train(config, folder, quiet=True)
    trained = load_run(folder)
    cache = FeatureCache(
        dataset.folder.with_name(dataset.folder.name + FEATURES),
        encoder_hash(trained.model.vision),
        config.model.vision.image_size,
    ).build(dataset, trained.model.encode_frames)
    figures = evaluate(trained.model, trained.tokenizer, dataset, trained.config, cache=cache)
    shutil.rmtree(folder)
    return {
        "choice": choice.name,
        "seed": seed,
        "steps": config.train.steps,
        "settings": list(choice.settings),
        "trained_parameters": summary.trained_parameters,
        "cpu_seconds": time.process_time() - began,
        "commit": fair.commit(),
        "figures": figures,
    }


def collect(out: Path, recipe: RunConfig, dataset: Dataset, frames: float) -> dict[str, Any]:
    """Every result of the work folder, a row a choice, with mean and range over the seeds that are there.

    A choice without a run in the folder keeps its row of the results that are there, if as many clips were held out;
    each row says which data its runs had.
    """
    data = f"{FULL.clips} generated clips of seed {FULL.seed}, curated: {dataset.counts}"
    earlier = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {"about": {}, "rows": []}
    chance = {"temporal_qa": 0.5, "twin_choice": 0.5, "retrieval_t2v_r1": found_chance(out)}
    same = earlier["about"].get("chance") == chance
    kept = {row["choice"]: {"data": earlier["about"]["data"]} | row for row in earlier["rows"]} if same else {}
    rows = []
    for choice in (*CHOICES, *LARGE):
        found = [json.loads(path.read_text("utf-8")) for path in sorted(out.glob(f"{choice.name}-seed*.json"))]
        if not found:
            rows += [kept[choice.name]] if choice.name in kept else []
            continue
        config = override(override(recipe, list(choice.settings)), [f"train.steps={found[0]['steps']}"])
        row: dict[str, Any] = {"choice": choice.name, "title": choice.title, "settings": list(choice.settings)}
        row["data"] = data
        row |= {"steps": found[0]["steps"], "seeds": len(found), "training_flops": run_flops(config, frames)}
        row |= {"commits": sorted({one["commit"] for one in found})}
        row |= {"trained_parameters": found[0]["trained_parameters"]}
        for figure in FIGURES:
            values = [one["figures"][figure] for one in found]
            row[figure] = {"mean": statistics.mean(values), "low": min(values), "high": max(values), "by_seed": values}
        rows.append(row)
    about = {
        "data": data,
        "frames_a_clip": frames,
        "chance": chance,
    }
    return {"about": about, "rows": rows}


def found_chance(out: Path) -> float | None:
    """R@1 of a random order of the held-out clips, as the evaluation gives it."""
    for path in out.glob("*-seed*.json"):
        chance: float = json.loads(path.read_text("utf-8"))["figures"]["retrieval_chance_r1"]
        return chance
    return None


def against(row: dict[str, Any], recipe: dict[str, Any], figure: str) -> str:
    """Whether a choice is "better" or "worse" than the recipe where the seeds' ranges do not meet, else ""."""
    own, its = row[figure], recipe[figure]
    if figure in LESS_IS_BETTER:
        own, its = its, own
    return "better" if own["low"] > its["high"] else "worse" if own["high"] < its["low"] else ""


def verdict(row: dict[str, Any], recipe: dict[str, Any]) -> str:
    """One sentence: what the seeds tell about a choice."""
    if row["seeds"] < SEEDS:
        return f"{row['seeds']} of {SEEDS} seeds: no verdict"
    sides = {
        side: [FIGURES[one] for one in FIGURES if against(row, recipe, one) == side] for side in ("better", "worse")
    }
    parts = [f"{side} on {' and '.join(figures)}" for side, figures in sides.items() if figures]
    return "; ".join(parts) or f"{row['seeds']} seeds do not separate it from the recipe"


def told(figure: dict[str, Any]) -> str:
    """Mean and range over seeds; of one seed, what it has."""
    spread = f" ({figure['low']:.3f} to {figure['high']:.3f})" if len(figure["by_seed"]) > 1 else ""
    return f"{figure['mean']:.3f}{spread}"


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The table."""
    yield f"| changed | steps | training FLOPs | {' | '.join(FIGURES.values())} | against the recipe |"
    yield "|---|---|---|" + "---|" * len(FIGURES) + "---|"
    recipe = next(row for row in found["rows"] if row["choice"] == RECIPE.name)
    for row in found["rows"]:
        cells = [row["title"], str(row["steps"]), f"{row['training_flops'] / 1e12:.2f} T"]
        cells += [told(row[one]) for one in FIGURES]
        yield f"| {' | '.join([*cells, '' if row is recipe else verdict(row, recipe)])} |"


def write_table(found: dict[str, Any]) -> None:
    """Put the table into the page, between its two marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    made = "\n".join(lines(found))
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{after}", encoding="utf-8")
    print(made)


def main() -> None:
    """Make the runs that are missing, seed by seed, then the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of the recipe's own run")
    names = {choice.name: choice for choice in (*CHOICES, *LARGE)}
    usual = [choice.name for choice in CHOICES]
    parser.add_argument("--choices", nargs="+", choices=names, default=usual, metavar="NAME", help=", ".join(names))
    parser.add_argument("--collect", action="store_true", help="run nothing; results and table of what is there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    dataset = dataset_of(asked.out)
    most = find("tiny").data.frames
    frames = statistics.mean(min(row.frames, most) for row in dataset.rows("train"))
    for seed, choice in [(seed, names[name]) for seed in range(SEEDS) for name in asked.choices]:
        path = asked.out / f"{choice.name}-seed{seed}.json"
        if asked.collect or path.is_file():
            continue
        config = config_of(choice, seed, asked.steps, dataset.folder, frames)
        result = measured(choice, seed, config, dataset, asked.out / path.stem)
        write_json(path, result)
        figures = "  ".join(f"{FIGURES[one]} {result['figures'][one]:.3f}" for one in FIGURES)
        print(f"{path.stem:20} {config.train.steps:4} steps  {figures}  {result['cpu_seconds']:.0f} s", flush=True)
    found = collect(asked.out, find("tiny"), dataset, frames)
    fair.write(RESULTS, found)
    write_table(found)


if __name__ == "__main__":
    main()
