"""The ranks of a job call in before anything is sent between them, so that one that does not come is named."""

import contextlib
import datetime
import os
import platform

from torch._C._distributed_c10d import Store, TCPStore  # torch.distributed has them too, without their types

from xgenvideo.errors import TrainError

GRACE_SECONDS = 5.0  # between the first rank's answer and the others' own patience
SETTING = "train.startup_timeout_seconds"
CURE = "start every rank with the same rendezvous, see to its machine, or allow more time"


def meet(rank: int, size: int, seconds: float) -> Store:
    """The job's store, once all `size` ranks have called in there within `seconds`.

    Otherwise the first rank raises TrainError, which names those that did not come, and the others end with exit code 1
    without a word (SystemExit). Where it is the first rank that did not come, all others raise TrainError.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = TCPStore(
            address,
            port,
            is_master=rank == 0 and not agent,
            timeout=datetime.timedelta(seconds=seconds),
            wait_for_workers=False,
            multi_tenant=True,
        )
        store.set(_called(rank), platform.node())
        if rank == 0:
            missing = call_roll(store, size)
        else:
            store.wait(["missing"], datetime.timedelta(seconds=seconds + GRACE_SECONDS))
            missing = store.get("missing").decode()
            store.set(_heard(rank), "")
    except RuntimeError as error:
        if rank == 0:
            raise TrainError(f"the job's store at {address}:{port} cannot be used ({_first_line(error)})") from error
        why = f"rank 0 of {size} has not come to {address}:{port} ({_first_line(error)})"
        raise TrainError(f"{SETTING} = {seconds:g}: {why}; {CURE}") from error
    if missing and rank:
        raise SystemExit(1)
    if missing:
        raise TrainError(f"{SETTING} = {seconds:g}: {missing} of {size} did not come in time; {CURE}")
    return store


def call_roll(store: Store, size: int) -> str:
    """The first rank's part: wait for all, tell the others who is missing, and return it: "" or "rank 3, rank 7"."""
    with contextlib.suppress(RuntimeError):
        store.wait([_called(rank) for rank in range(size)])
    there = [rank for rank in range(size) if store.check([_called(rank)])]
    missing = ", ".join(f"rank {rank}" for rank in range(size) if rank not in there)
    store.set("missing", missing)
    if missing:
        # The store may end with this process, so the others read it first; or outlive it, so nothing is left in it.
        with contextlib.suppress(RuntimeError):
            store.wait([_heard(rank) for rank in there if rank], datetime.timedelta(seconds=GRACE_SECONDS))
        for key in ("missing", *(_called(rank) for rank in there), *(_heard(rank) for rank in there)):
            store.delete_key(key)
    return missing


def _called(rank: int) -> str:
    return f"called/{rank}"


def _heard(rank: int) -> str:
    return f"heard/{rank}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
