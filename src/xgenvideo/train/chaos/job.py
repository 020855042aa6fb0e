"""A job of real ranks on this machine that can be hurt: started from a server that has imported everything already, so
that a hundred starts take minutes.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType

from xgenvideo.config import RunConfig
from xgenvideo.errors import XGenVideoError
from xgenvideo.train.chaos.injected import Injected

END_SECONDS = 600.0
PRELOADED = ["xgenvideo.train.chaos.job", "torch.utils.tensorboard", "torch.distributed.pipelining"]

CONTEXT = multiprocessing.get_context("forkserver")


class Job:
    """The ranks of one start of a run. `log` gets what they say; `injected` is a fault that a rank brings with it."""

    def __init__(self, config: RunConfig, out: Path, log: Path, injected: Injected | None = None) -> None:
        CONTEXT.set_forkserver_preload(PRELOADED)
        self.out, self.log, self.began = out, log, time.monotonic()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        size = config.layout.world
        self.ranks: list[ForkServerProcess] = [
            CONTEXT.Process(target=rank_of_job, args=(config, out, rank, size, port, log, injected))
            for rank in range(size)
        ]
        for rank in self.ranks:
            rank.start()

    def __enter__(self) -> "Job":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        """Whether any rank is."""
        return any(rank.is_alive() for rank in self.ranks)

    def send(self, rank: int, number: signal.Signals) -> None:
        """A signal to one rank, if it still runs."""
        process = self.ranks[rank].pid
        if process is not None and self.ranks[rank].is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def loader_processes(self, rank: int) -> list[int]:
        """The process ids of a rank's loader workers: children of the server that the rank starts them from."""
        children: dict[int, list[int]] = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parent = int(status.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(status.parent.name))
        own = self.ranks[rank].pid or 0
        return [worker for server in children.get(own, []) for worker in children.get(server, [])]

    def kill(self, first: int = 0, apart_seconds: float = 0.0) -> bool:
        """SIGKILL `first`, the others a moment later; whether any of them was still running."""
        running = self.running
        self.send(first, signal.SIGKILL)
        time.sleep(apart_seconds)
        for rank in range(len(self.ranks)):
            self.send(rank, signal.SIGKILL)
        for process in self.ranks:
            process.join()
        return running

    def wait(self, seconds: float = END_SECONDS) -> list[int | None]:
        """The exit codes; ranks that do not end in time are killed and have None."""
        deadline = time.monotonic() + seconds
        for rank in self.ranks:
            rank.join(max(0.0, deadline - time.monotonic()))
        codes = [None if rank.is_alive() else rank.exitcode for rank in self.ranks]
        self.kill()
        return codes

    def told(self) -> str:
        """What the ranks said."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""


def rank_of_job(
    config: RunConfig, out: Path, rank: int, size: int, port: int, log: Path, injected: Injected | None
) -> None:
    """What a process does: be this rank, say everything into `log`, end as the command line would."""
    from xgenvideo.train.loop import train

    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with injected.into(rank) if injected is not None else contextlib.nullcontext():
            train(config, out)
    except XGenVideoError as error:
        print(f"rank {rank}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


def start_and_end(config: RunConfig, out: Path, log: Path, injected: Injected | None = None) -> list[int | None]:
    """Run a job to its end; returns the exit codes of its ranks."""
    with Job(config, out, log, injected) as job:
        return job.wait()
