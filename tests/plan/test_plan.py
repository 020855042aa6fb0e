"""The planner's counts, cut, memory, times and readings of the stated run, and its report."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from xgenvideo.config import LayoutConfig, RunConfig, override
from xgenvideo.errors import ConfigError
from xgenvideo.plan import plan, render, to_json
from xgenvideo.plan.flops import training_flops
from xgenvideo.plan.hardware import GPUS, find_gpu
from xgenvideo.plan.memory import memory
from xgenvideo.plan.parameters import parameters
from xgenvideo.plan.pipeline import Stage, balanced, bubble, by_rank, cut, microbatches_in_flight
from xgenvideo.plan.report import machine_of
from xgenvideo.plan.seed import STATED, implied, solve_text_tokens
from xgenvideo.plan.timing import PLACEMENTS, encoder_slow_down, needs_text_pass, step_time
from xgenvideo.plan.units import SOFTWARE
from xgenvideo.recipes import RECIPES, find


def test_parameters_of_the_full_model() -> None:
    counted = parameters(find("video_30b").model)
    assert (counted.total, counted.trainable) == (30_202_772_625, 28_359_995_281)
    assert dataclasses.astuple(counted) == (
        1_842_777_344,
        202_728_448,
        1_610_612_736,
        48 * 475_017_216,
        8 * 465_842_434,
        19_088_257,
    )


def test_flops_of_a_pair() -> None:
    config = find("video_30b")
    one = training_flops(config, 1, 512, 64, 64)
    assert one.encoder == pytest.approx(61.9e12, rel=1e-3)
    assert one.total < one.total_quadratic < 1.01 * one.total
    many = training_flops(config, 2048, 512, 64, 2048 * 64)
    assert many.total == pytest.approx(2048 * one.total)
    # Six FLOPs a parameter and token; attention at 512 tokens adds one per cent, the embedding costs nothing.
    weights = parameters(config.model)
    per_token = (training_flops(config, 1, 513, 64, 0).total - training_flops(config, 1, 512, 64, 0).total) / 6
    assert per_token == pytest.approx(
        weights.self_blocks + weights.cross_blocks + weights.embedding_and_head / 2, rel=0.02
    )


def test_cut_without_the_head_is_even() -> None:
    stages = cut(find("video_30b").model, 512, 8, head=False)
    assert [(len(stage.layers), len(stage.cross)) for stage in stages] == [
        (7, 0),
        (7, 0),
        (7, 0),
        (6, 1),
        (5, 2),
        (5, 2),
        (5, 2),
        (6, 1),
    ]
    assert slowest_over_mean(stages) < 1.0035


def test_cut_with_the_head_is_the_best_there_is() -> None:
    """The head weighs 1.7 blocks: one of eight ranks must hold eight blocks, or the last seven and the head."""
    model = find("video_30b").model
    stages = cut(model, 512, 8)
    assert [layer for stage in stages for layer in stage.layers] == list(range(48))
    assert [layer for stage in stages for layer in stage.cross] == list(model.decoder.cross_before)
    assert [stage.head for stage in stages] == [False] * 7 + [True]
    assert slowest_over_mean(stages) == pytest.approx(1.107, abs=0.001)
    last_by_count = cut(model, 512, 8, head=False)[-1].forward_flops + 2 * 512 * 6144 * 131_072
    assert max(stage.forward_flops for stage in stages) < last_by_count


def slowest_over_mean(stages: tuple[Stage, ...]) -> float:
    costs = [stage.forward_flops for stage in stages]
    return max(costs) * len(costs) / sum(costs)


def test_balanced_beats_every_other_cut() -> None:
    costs = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    found = balanced(costs, 3, last_extra=2.0)
    slowest = [max(sum(costs[:a]), sum(costs[a:b]), sum(costs[b:]) + 2.0) for a in range(1, 7) for b in range(a + 1, 8)]
    a, b, end = found
    assert end == len(costs)
    assert max(sum(costs[:a]), sum(costs[a:b]), sum(costs[b:]) + 2.0) == min(slowest)


def test_more_stages_than_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"layout\.pipeline"):
        cut(find("tiny").model, 64, 7)


def test_v_shaped_schedule_goes_there_and_back() -> None:
    layout = LayoutConfig(pipeline=2, virtual_stages=2, schedule="zbv")
    ranks = by_rank(cut(find("tiny").model, 64, 4), layout)
    assert ranks[0][0].embedding
    assert ranks[0][1].head


@pytest.mark.parametrize(
    ("schedule", "chunks", "idle"),
    [("gpipe", 1, 7 / 135), ("1f1b", 1, 7 / 135), ("interleaved_1f1b", 2, 3.5 / 131.5), ("zbv", 2, 0.0)],
)
def test_bubble(schedule: str, chunks: int, idle: float) -> None:
    layout = LayoutConfig(pipeline=8, virtual_stages=chunks, schedule=schedule)
    assert bubble(layout, 128) == pytest.approx(idle)


def test_microbatches_in_flight() -> None:
    plain = LayoutConfig(pipeline=8)
    assert [microbatches_in_flight(plain, 128, rank) for rank in range(8)] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert microbatches_in_flight(dataclasses.replace(plain, schedule="gpipe"), 128, 3) == 128
    interleaved = dataclasses.replace(plain, schedule="interleaved_1f1b", virtual_stages=2)
    assert microbatches_in_flight(interleaved, 128, 0) == 23 / 2
    assert microbatches_in_flight(interleaved, 4, 0) == 4


def test_memory_holds_every_parameter_once_a_replica() -> None:
    config = find("video_30b")
    counted, layout = parameters(config.model), config.layout
    ranks = memory(config, 512)
    decoder = counted.self_blocks + counted.cross_blocks + counted.embedding_and_head
    visual = counted.resampler + counted.norms_and_projections
    world = layout.tensor * layout.pipeline
    assert layout.tensor * sum(rank.weights for rank in ranks) == 2 * (decoder + world * visual)
    # Optimizer states exist once in the whole run: masters and two moments, twelve bytes a trained parameter.
    assert layout.tensor * layout.data * sum(rank.optimizer for rank in ranks) == pytest.approx(12 * counted.trainable)
    assert all(rank.encoder == 2 * counted.encoder for rank in ranks)
    assert [rank.encoder > 0 for rank in memory(config, 512, encoder_in_stage_0=True)] == [True] + [False] * 7


def test_more_text_takes_more_memory_and_cached_features_less() -> None:
    config = find("video_30b")
    cached = override(config, ["data.cache_features=true"])
    for short, long, without in zip(memory(config, 512), memory(config, 4096), memory(cached, 512), strict=True):
        assert short.decoder_activations < long.decoder_activations
        assert without.total < short.total


@pytest.mark.parametrize(("tokens", "slower"), [(77, 6.9), (512, 4.1), (4096, 1.6)])
def test_encoder_in_stage_0_slows_the_pipeline(tokens: int, slower: float) -> None:
    assert encoder_slow_down(find("video_30b"), tokens) == pytest.approx(slower, abs=0.05)


def test_step_time_of_one_gpu_is_its_parts() -> None:
    """One stage and one replica: nothing to fill, send or wait for; twice the microbatches take twice the decoder."""
    config = find("one_gpu")
    machine = machine_of("h100")
    step = step_time(config, machine)
    assert step.fill == step.messages == step.join == step.data == step.jitter == 0
    assert step.total == pytest.approx(step.visual + step.text_pass + step.decoder + step.optimizer)
    assert needs_text_pass(config)
    assert not needs_text_pass(override(config, ["objective.contrastive_weight=0"]))
    twice = override(config, [f"train.global_batch_pairs={2 * config.train.global_batch_pairs}"])
    assert step_time(twice, machine).decoder == pytest.approx(2 * step.decoder)
    assert step_time(config, machine, recompute="full").decoder > step.decoder


def test_placements_order_as_physics_says() -> None:
    config, machine = find("video_30b"), machine_of("h100")
    steps = {placement: step_time(config, machine, placement) for placement in PLACEMENTS}
    assert steps["stage_0"].total > 2 * steps["all_ranks"].total
    assert steps["cached"].total < steps["all_ranks"].total
    assert steps["stage_0"].visual == 0 < steps["all_ranks"].visual
    slower = {name: step_time(config, replace(machine, software=kind)).total for name, kind in SOFTWARE.items()}
    assert slower["tuned"] < slower["compiled"] < slower["eager"]


def test_stated_run_implies() -> None:
    found = implied(find("video_30b"))
    assert found.flops == pytest.approx(8.76e23, rel=1e-3)
    assert found.flops_per_pair_once == pytest.approx(5.84e15, rel=1e-3)
    assert found.iterations_per_epoch == 73_242
    assert found.seconds_per_iteration_once == pytest.approx(53, abs=0.1)
    assert found.flops_per_pair == pytest.approx((0.1507e15, 0.1512e15), rel=1e-3)
    assert found.many_epochs.epochs == pytest.approx((38.8, 38.6), abs=0.05)
    assert found.many_epochs.checkpoint_hours == pytest.approx((0.38, 0.38), abs=0.005)
    assert found.one_epoch.text_tokens == pytest.approx((27_200, 23_400), abs=50)
    assert found.one_epoch.checkpoint_hours == pytest.approx((14.7, 14.7), abs=0.05)


def test_both_readings_use_up_the_stated_compute() -> None:
    config, found = find("video_30b"), implied(find("video_30b"))
    tokens = int(found.one_epoch.text_tokens[0])
    once = STATED.pairs * training_flops(config, 1, tokens, 64, 64).total
    assert once == pytest.approx(found.flops, rel=1e-3)
    assert STATED.pairs * found.many_epochs.epochs[1] * found.flops_per_pair[1] == pytest.approx(found.flops)
    assert solve_text_tokens(config, 1e12, lambda flops: flops.total) == 0


@pytest.mark.parametrize(("recipe", "gpus"), [("tiny", 1), ("one_gpu", 1), ("one_gpu", 8), ("video_30b", 512)])
def test_report_is_text_and_json(recipe: str, gpus: int) -> None:
    report = plan(find(recipe), gpus, "h100")
    text = render(report)
    assert f"{report.parameters.total:,}" in text
    assert "rates fitted on published runs" in text
    assert ("stated target 44.5% MFU" in text) == (recipe == "video_30b")
    assert max(map(len, text.splitlines())) <= 120, text
    values = json.loads(json.dumps(to_json(report)))
    assert values["parameters"]["total"] == report.parameters.total
    assert values["fits"] is report.fits is True
    assert values["estimates"][0]["step"]["total"] == report.estimates[0].step.total


def test_every_recipe_is_planned_on_every_gpu() -> None:
    for name in RECIPES:
        config = find(name)
        for gpu in GPUS:
            report = plan(config, config.layout.world, gpu.name.upper())
            assert 0 < report.estimates[0].mfu < 0.6
            assert report.estimates[0].low < report.estimates[0].step.total < report.estimates[0].high


def test_data_axis_follows_the_gpus() -> None:
    assert plan(find("video_30b"), 256, "h100").layout.data == 8
    with pytest.raises(ConfigError, match=r"--gpus = 500.*480, 512"):
        plan(find("video_30b"), 500, "h100")
    with pytest.raises(ConfigError, match="global_batch_pairs"):
        plan(find("tiny"), 2, "h100")
    with pytest.raises(ConfigError, match=r"--gpu = 'abacus'.*h100"):
        find_gpu("abacus")


@pytest.mark.parametrize("assignments", [["layout.virtual_stages=2"], ["layout.schedule=zbv"]])
def test_schedule_that_does_not_fit_is_refused(assignments: list[str]) -> None:
    config: RunConfig = override(find("video_30b"), assignments)
    with pytest.raises(ConfigError, match=r"layout\.virtual_stages"):
        plan(config, 512, "h100")


def test_planner_needs_no_torch() -> None:
    code = "import sys, xgenvideo.plan; sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
