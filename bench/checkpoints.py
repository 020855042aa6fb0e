"""How long a save keeps training waiting, and how long it takes in all: ours beside torch.save and stock DCP.

Run: make bench-checkpoints. The same state for each (weights and two moments of a small model), interleaved in one run
with one thread; writes bench/results/checkpoints.json. A stall is the time until the call returns; a total the time
until the files are there. Both may wait for the disk, so no round is refused for waiting. Only ours and nothing else
hashes and fsyncs what it writes, and reads it back.
"""

import argparse
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fair import RESULTS, ROUNDS, quartiles, write
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import async_save, save

from xgenvideo import recipes
from xgenvideo.checkpoint import Retention, Saver, Snapshot

LAYERS, WIDTH = 24, 1024
OURS, CLONE, DCP_ASYNC = "ours, async", "clone alone", "DCP async_save"
BESIDE = {"clone": CLONE, "dcp_async": DCP_ASYNC}


def made_state() -> dict[str, dict[str, Tensor]]:
    """Weights and moments of LAYERS layers of WIDTH x WIDTH and a vector each."""
    names = [f"layers.{layer}.{kind}" for layer in range(LAYERS) for kind in ("weight", "bias")]
    shapes = {name: (WIDTH, WIDTH) if name.endswith("weight") else (WIDTH,) for name in names}
    weights = {name: torch.randn(shape) for name, shape in shapes.items()}
    moments = {f"{name}/{kind}": torch.randn(shapes[name]) for name in names for kind in ("exp_avg", "exp_avg_sq")}
    return {"model": weights, "optimizer": moments}


class Savers:
    """Each way to save; a call returns (stall, total) in seconds."""

    def __init__(self, state: dict[str, dict[str, Tensor]], folder: Path) -> None:
        self.state, self.folder, self.count = state, folder, 0
        self.flat = {f"{part}.{name}": tensor for part, named in state.items() for name, tensor in named.items()}
        self.config = recipes.find("tiny")
        self.saver = Saver(folder / "ours", Retention(keep=2))
        self.kept = {name: torch.empty_like(tensor) for name, tensor in self.flat.items()}
        self.stager = DefaultStager(StagingOptions(False, False, False, False))

    def ways(self) -> dict[str, Callable[[], tuple[float, float]]]:
        """By name."""
        return {
            CLONE: self.clone,
            "clone into kept memory": self.copy,
            OURS: self.ours,
            "torch.save": self.torch_save,
            "DCP save": self.dcp_save,
            DCP_ASYNC: self.dcp_async,
            "DCP async_save, kept stager": self.dcp_async_kept,
        }

    def place(self) -> str:
        """A new folder or file; the one before is removed."""
        self.count += 1
        for path in self.folder.glob("other-*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return str(self.folder / f"other-{self.count}")

    def clone(self) -> tuple[float, float]:
        """A plain clone of every tensor."""
        began = time.perf_counter()
        copied = {name: tensor.clone() for name, tensor in self.flat.items()}
        took = time.perf_counter() - began
        del copied
        return took, took

    def copy(self) -> tuple[float, float]:
        """A copy into memory that was there before."""
        began = time.perf_counter()
        for name, tensor in self.flat.items():
            self.kept[name].copy_(tensor)
        took = time.perf_counter() - began
        return took, took

    def ours(self) -> tuple[float, float]:
        """Saver.save_async."""
        self.count += 1
        snapshot = Snapshot(self.count, self.config, dict(self.state), {})
        began = time.perf_counter()
        self.saver.save_async(snapshot)
        stall = time.perf_counter() - began
        saved = self.saver.wait()
        assert saved is not None
        return stall, stall + saved.write_seconds

    def torch_save(self) -> tuple[float, float]:
        """torch.save of the dict."""
        place, began = self.place(), time.perf_counter()
        torch.save(self.state, place)
        took = time.perf_counter() - began
        return took, took

    def dcp_save(self) -> tuple[float, float]:
        """Stock torch.distributed.checkpoint."""
        place, began = self.place(), time.perf_counter()
        save(self.state, checkpoint_id=place, no_dist=True)
        took = time.perf_counter() - began
        return took, took

    def dcp_async(self, **options: Any) -> tuple[float, float]:
        """Its async_save, in a thread."""
        place, began = self.place(), time.perf_counter()
        going: Any = async_save(self.state, checkpoint_id=place, no_dist=True, **options)
        stall = time.perf_counter() - began
        going.result()
        return stall, time.perf_counter() - began

    def dcp_async_kept(self) -> tuple[float, float]:
        """With a stager that is kept from save to save."""
        return self.dcp_async(async_stager=self.stager)


def measure(repeats: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Medians and spread of stall and total of each way, interleaved; the first round is not counted."""
    savers = Savers(made_state(), folder)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in savers.ways()}
    for number in range(repeats + 1):
        for name, way in savers.ways().items():
            result = way()
            if number:
                taken[name].append(result)
    return {
        name: {
            "stall_seconds": statistics.median(stall for stall, _ in results),
            "ours_over_it": quartiles([stall for stall, _ in taken[OURS]], [stall for stall, _ in results]),
            "stall_worst": max(stall for stall, _ in results),
            "total_seconds": statistics.median(total for _, total in results),
        }
        for name, results in taken.items()
    }


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, default=RESULTS / "checkpoints.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options.repeats, Path(folder))
    size = sum(tensor.nbytes for named in made_state().values() for tensor in named.values())
    for name, figures in found.items():
        print(f"{name:32} stall {figures['stall_seconds']:7.3f} s   total {figures['total_seconds']:7.3f} s")
    ratios = {f"stall_over_{short}": found[way]["ours_over_it"] for short, way in BESIDE.items()}
    print(", ".join(f"{name} {low:.2f} to {high:.2f}" for name, (low, _, high) in ratios.items()))
    write(options.out, {"about": {"repeats": options.repeats}, "bytes": size, **ratios, "ways": found})


if __name__ == "__main__":
    main()
