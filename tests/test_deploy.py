"""The job files start the large recipe on as many ranks as its layout has, and every part of a curation."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import yaml

from xgenvideo import cli, recipes
from xgenvideo.curate.inputs import Part

DEPLOY = Path(__file__).parent.parent / "deploy"
SIZES = ("nodes", "gpus-per-node")
RANKS = recipes.find("video_30b").layout.world


def test_the_slurm_script_is_bash_for_every_rank() -> None:
    script = DEPLOY / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    nodes, gpus = (int(re.findall(rf"^#SBATCH --{name}=(\d+)$", text, re.MULTILINE)[0]) for name in SIZES)
    assert nodes * gpus == RANKS
    command = text[text.index("-m xgenvideo ") :].split("xgenvideo ", 1)[1].partition("\n\n")[0]
    parsed = cli.parse(shlex.split(command))
    assert (parsed.verb, parsed.recipe) == ("train", "video_30b")


def test_the_slurm_array_starts_every_part_and_then_publishes(tmp_path: Path) -> None:
    script = DEPLOY / "curate.sbatch"
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/bash\nshift\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)

    def command(task: int, *more: str) -> list[str]:
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": str(task)}
        called = ["bash", str(script), "/shared/a list.csv", "/shared/out", "/shared/videos", *more]
        return subprocess.run(called, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    last = int(re.findall(r"^#SBATCH --array=0-(\d+)$", script.read_text(encoding="utf-8"), re.MULTILINE)[0])
    for task in (0, last):
        parsed = cli.parse(command(task))
        assert (parsed.verb, parsed.source, parsed.videos) == ("curate", "/shared/a list.csv", "/shared/videos")
        assert Part.parse(parsed.part) == Part(task, last + 1)
    assert cli.parse(command(0, "publish")).part is None


def test_the_kubernetes_manifest_starts_every_rank() -> None:
    job = yaml.safe_load((DEPLOY / "pytorchjob.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = job["spec"]["pytorchReplicaSpecs"]["Worker"]
    [container] = worker["template"]["spec"]["containers"]
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert worker["replicas"] * gpus == RANKS
    assert int(job["spec"]["nprocPerNode"]) == gpus
    command = container["command"]
    parsed = cli.parse(command[command.index("xgenvideo") + 1 :])
    assert (parsed.verb, parsed.recipe, parsed.out) == ("train", "video_30b", "/shared/runs/video_30b")
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in worker["template"]["spec"]["volumes"]}
