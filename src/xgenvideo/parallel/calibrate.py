"""Collectives and messages measured between the ranks that torchrun started; nothing where there is one process."""

import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed

from xgenvideo.plan.calibration import Link

SMALL_BYTES, LARGE_BYTES = 4, 2**24
PATIENCE = timedelta(seconds=120)


def measure_links(device: torch.device, seconds: float) -> tuple[Link, ...]:
    """Latency and bandwidth of all-reduce over all ranks, and of a message from rank 0 to 1, in about `seconds`.

    Joins the ranks of torchrun over nccl or gloo for as long as it takes; every rank answers the same.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ()
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        ranks, rank = distributed.get_world_size(), distributed.get_rank()

        def message(data: torch.Tensor) -> None:
            if rank == 0:
                distributed.send(data, dst=1)
                distributed.recv(data, src=1)
            elif rank == 1:
                distributed.recv(data, src=0)
                distributed.send(data, dst=0)

        return (
            _link("all_reduce", backend, ranks, device, seconds / 2, distributed.all_reduce, 1.0),
            _link("message", backend, 2, device, seconds / 2, message, 0.5),
        )
    finally:
        distributed.destroy_process_group()


def _link(
    kind: str,
    backend: str,
    ranks: int,
    device: torch.device,
    seconds: float,
    work: Callable[[torch.Tensor], object],
    share: float,
) -> Link:
    """`share` of the time of one piece of work is what is wanted: half of a message there and back."""
    small = share * _agreed(work, torch.zeros(SMALL_BYTES // 4, device=device), seconds / 4)
    large = share * _agreed(work, torch.zeros(LARGE_BYTES // 4, device=device), seconds / 2)
    return Link(kind, backend, ranks, small, LARGE_BYTES / max(1e-9, large - small))


def _agreed(work: Callable[[torch.Tensor], object], data: torch.Tensor, seconds: float) -> float:
    """Median seconds of `work` on rank 0, told to all: every rank must take the same number of turns."""
    first = _timed(work, data)
    turns = torch.tensor([max(3.0, min(1000.0, seconds / max(first, 1e-6)))], device=data.device)
    distributed.broadcast(turns, src=0)
    median = torch.tensor([statistics.median(_timed(work, data) for _ in range(int(turns.item())))], device=data.device)
    distributed.broadcast(median, src=0)
    return float(median.item())


def _timed(work: Callable[[torch.Tensor], object], data: torch.Tensor) -> float:
    distributed.barrier()
    start = time.perf_counter()
    work(data)
    if data.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
