"""The whole campaign: kills on every layout, damage, the other faults; one JSON file with every verdict."""

import platform
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from xgenvideo import __version__
from xgenvideo.config import RunConfig
from xgenvideo.errors import ConfigError
from xgenvideo.train.chaos.damage import flipped_bits, holes_and_cuts, pickles
from xgenvideo.train.chaos.faults import FAULTS, Trial
from xgenvideo.train.chaos.kills import Kills, kill_often, undisturbed
from xgenvideo.train.chaos.setting import LAYOUTS, small_dataset, small_run
from xgenvideo.train.chaos.verdict import Verdict

KILL, DAMAGE = "kill", "damage"
SHARE_IN_SAVE = 0.45
KNOWN = (KILL, DAMAGE, *FAULTS)


def run_chaos(
    config: RunConfig,
    out: Path,
    kills: int = 100,
    processes: Sequence[int] = (1, 2, 4),
    faults: Sequence[str] = KNOWN,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Hurt runs of the recipe's model in `out` and return every verdict and figure, as JSON values.

    `kills` over all layouts of `processes` ranks. Raises ConfigError for a fault or a number of processes that is not
    known, TrainError when a run does not even go undisturbed.
    """
    check(processes, faults, kills)
    began, dataset = time.monotonic(), small_dataset(out / "dataset")
    campaigns: list[Kills] = []
    verdicts: list[Verdict] = []
    if KILL in faults:
        campaigns, verdicts = kill_layouts(config, dataset, out, kills, processes, seed, say)
    others = [name for name in faults if name in FAULTS]
    if others or DAMAGE in faults:
        trial = prepare(config, dataset, out)
        if DAMAGE in faults:
            scratch = out / "damage"
            verdicts.append(flipped_bits(trial.whole_one, scratch, seed))
            verdicts += [*holes_and_cuts(trial.whole_one, scratch, seed), pickles(trial.whole_one, scratch)]
        for name in others:
            verdicts += FAULTS[name](trial)
            say(str(verdicts[-1]))
    return figures(campaigns, verdicts, seed, time.monotonic() - began)


def check(processes: Sequence[int], faults: Sequence[str], kills: int) -> None:
    """Refuse what cannot be tried."""
    for name in faults:
        if name not in KNOWN:
            raise ConfigError("--faults", name, "no such fault", KNOWN)
    for number in processes:
        if number not in LAYOUTS:
            raise ConfigError("--processes", number, "must be a number of ranks that has a layout here", LAYOUTS)
    if kills < 1:
        raise ConfigError("--kills", kills, "must be at least 1")


def kill_layouts(
    config: RunConfig,
    dataset: Path,
    out: Path,
    kills: int,
    processes: Sequence[int],
    seed: int,
    say: Callable[[str], None],
) -> tuple[list[Kills], list[Verdict]]:
    """The kills, shared out over the layouts; more on the small ones, which start faster."""
    weights = [1 / (1 + number) for number in processes]
    campaigns = []
    for number, weight in zip(processes, weights, strict=True):
        share = max(1, round(kills * weight / sum(weights) + 0.5))
        in_save = round(share * SHARE_IN_SAVE + 0.5)
        folder = out / f"kills-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        campaigns.append(kill_often(small_run(config, dataset, number), folder, share, in_save, seed, say))
    return campaigns, [verdict for campaign in campaigns for verdict in judge(campaign)]


def judge(campaign: Kills) -> list[Verdict]:
    """What the kills of one layout showed."""
    broken = [str(end) for end in campaign.ends if not end.same]
    lost, replayed = sum(end.lost for end in campaign.ends), sum(end.replayed for end in campaign.ends)
    redone = max(end.steps_redone_max for end in campaign.ends)
    counted = {"processes": campaign.processes, "kill_points": campaign.points, "in_save": campaign.points_in_save}
    told = "; ".join(broken[:2])
    return [
        Verdict("kill", "bitwise", not broken, told, counted | {"runs": len(campaign.ends)}),
        Verdict("kill", "exactly once", not lost and not replayed, told, {"lost": lost, "replayed": replayed}),
        Verdict(
            "kill",
            "atomic",
            redone <= campaign.interval + 1,
            "saving goes on beside training: a kill inside a save undoes the interval and the step that ran meanwhile",
            {"steps_redone_max": redone, "interval": campaign.interval},
        ),
    ]


def prepare(config: RunConfig, dataset: Path, out: Path) -> Trial:
    """The undisturbed runs that the other faults are compared with."""
    folder = out / "faults"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    one, two = small_run(config, dataset, 1), small_run(config, dataset, 2)
    trial = Trial(one, two, folder / "whole-1", folder / "whole-2", folder)
    for part, whole in ((one, trial.whole_one), (two, trial.whole_two)):
        undisturbed(part, whole, folder / "whole.txt")
    return trial


def figures(campaigns: list[Kills], verdicts: list[Verdict], seed: int, seconds: float) -> dict[str, Any]:
    """The file of a campaign."""
    ends = [end for campaign in campaigns for end in campaign.ends]
    useful = sum(campaign.useful_seconds for campaign in campaigns)
    killed = sum(campaign.seconds for campaign in campaigns)
    predicted = sum(campaign.predicted * campaign.seconds for campaign in campaigns)
    return {
        "kill_points": sum(campaign.points for campaign in campaigns),
        "kill_points_in_save": sum(campaign.points_in_save for campaign in campaigns),
        "samples_lost": sum(end.lost for end in ends),
        "samples_replayed": sum(end.replayed for end in ends),
        "bitwise_equal": all(not end.differences for end in ends),
        "steps_redone_max": max((end.steps_redone_max for end in ends), default=0),
        "interval_steps": max((campaign.interval for campaign in campaigns), default=0),
        "goodput": useful / killed if killed else None,
        "goodput_predicted": predicted / killed if killed else None,
        "layouts": [campaign.processes for campaign in campaigns],
        "faults": [verdict.to_dict() for verdict in verdicts],
        "held": all(verdict.held for verdict in verdicts),
        "seed": seed,
        "seconds": seconds,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.processor() or 'CPU'}",
        "versions": {"xgenvideo": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
