"""The job files start the large recipe on as many ranks as its layout has."""

import re
import shlex
import subprocess
from pathlib import Path

import yaml

from xgenvideo import cli, recipes

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
