"""Start the ranks of a run on this machine, under torchrun."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType

# A restarted group otherwise reads addresses of the one before it and hangs (pytorch issue 135712).
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
SAVE_SECONDS = 540  # how long ranks may take to save and end after a signal, before they are killed


def launch(processes: int, restarts: int, arguments: Sequence[str]) -> int:
    """Run `xgv` with `arguments` as so many ranks and wait for them; after a rank dies all are started again.

    SIGINT, SIGTERM and SIGUSR1 reach every rank once, so that the run saves and ends. Returns torchrun's exit code.
    """
    # Left to itself, torchrun makes a folder for logs and leaves it behind.
    with tempfile.TemporaryDirectory(prefix="xgv-ranks-") as logs:
        return _run(processes, restarts, arguments, logs)


def _run(processes: int, restarts: int, arguments: Sequence[str], logs: str) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [f"--log-dir={logs}", f"--signals-to-handle={','.join(FORWARDED)}"]
    command += [f"--max-restarts={restarts}", f"--shutdown-timeout={SAVE_SECONDS}", "-m", "xgenvideo", *arguments]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    # A session of its own: a Ctrl-C at the terminal would reach the ranks twice, and the second ends them at once.
    job = subprocess.Popen(command, env=os.environ | ENVIRONMENT | {"OMP_NUM_THREADS": threads}, start_new_session=True)

    def stop(number: int, frame: FrameType | None) -> None:
        job.send_signal(signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        return job.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if job.poll() is None:
            job.terminate()
