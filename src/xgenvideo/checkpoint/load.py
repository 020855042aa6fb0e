"""Loading: the newest checkpoint is computed from verified commits. Into any layout, or whole."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.planner import LoadPlan

from xgenvideo import config
from xgenvideo.checkpoint.plan import VerifiedLoadPlanner
from xgenvideo.checkpoint.ranks import Ranks
from xgenvideo.checkpoint.reader import ShardReader, verify_file
from xgenvideo.checkpoint.snapshot import (
    CONFIG,
    DTYPES,
    RANK_PART,
    STATE,
    Snapshot,
    rank_prefix,
    read_commit,
    step_folders,
)
from xgenvideo.errors import CheckpointError


@dataclass(frozen=True)
class Search:
    """The newest checkpoint that verifies, if any, and the newer ones that do not, each with its reason."""

    newest: Path | None
    refused: dict[Path, str]


def search(folder: Path, ranks: Ranks | None = None) -> Search:
    """Look for the newest verified checkpoint below `folder` (a run's `checkpoints`); all ranks share the reading."""
    ranks = ranks or Ranks(0, 1, None)
    # Rank 0 alone looks at the folder: another rank may see it later, and must not look for another checkpoint.
    paths: list[Path] = ranks.together(
        lambda: [path for _, path in step_folders(folder)] if ranks.rank == 0 else [], lambda all: [all[0]] * ranks.size
    )
    refused: dict[Path, str] = {}
    for path in paths:
        reason = verify_together(path, ranks)
        if not reason:
            return Search(path, refused)
        refused[path] = reason
    return Search(None, refused)


def newest_verified(folder: Path, ranks: Ranks | None = None) -> Path:
    """The newest checkpoint below `folder` whose every hash is right. Raises CheckpointError: why there is none."""
    found = search(folder, ranks)
    if found.newest is None:
        reasons = "; ".join(found.refused.values()) or "nothing was saved there"
        raise CheckpointError(f"{folder}: no checkpoint can be used ({reasons})")
    return found.newest


def verify(path: Path, share: int = 0, of: int = 1, from_disk: bool = False) -> None:
    """Compare size and hash of every `of`-th file with the commit record. Raises CheckpointError: the first difference.

    `from_disk`: what the disk has, not what the system still has in memory.
    """
    files = sorted(read_commit(path).files.items())
    for name, listed in files[share::of]:
        verify_file(path / name, listed, from_disk)


def verify_together(path: Path, ranks: Ranks, from_disk: bool = False) -> str:
    """Verify with all ranks, each a share of the files; returns why it does not verify, or nothing."""

    def check() -> str:
        try:
            verify(path, ranks.rank, ranks.size, from_disk)
        except CheckpointError as error:
            return str(error)
        return ""

    def first(reasons: list[str]) -> Sequence[str]:
        return [next((reason for reason in reasons if reason), "")] * ranks.size

    return ranks.together(check, first)


def load(path: Path, parts: Collection[str] | None = None, ranks: Ranks | None = None) -> Snapshot:
    """Read a checkpoint of any layout as whole tensors, verifying every file that is read; `parts` limits them.

    The state of a rank comes back where `ranks` are as many as saved it. Raises CheckpointError for a corrupt or
    incomplete checkpoint, ConfigError for a config that this program cannot read.
    """
    ranks, reader = ranks or Ranks(0, 1, None), ShardReader(path)
    held = {name.partition("/")[0] for name in reader.index} - {RANK_PART}
    missing = sorted(set(parts or ()) - held)
    if missing:
        files = ", ".join(sorted(reader.commit.files))
        raise CheckpointError(f"{path}: has no {', '.join(missing)}, only {', '.join(sorted(held))} (in {files})")
    wanted = held if parts is None else set(parts)
    flat = {name: _empty(about) for name, about in reader.index.items() if name.partition("/")[0] in wanted}
    own = {} if parts is not None else _own_state(reader, ranks)
    _fill(reader, flat | own, ranks)
    prefix = rank_prefix(ranks.rank)
    return Snapshot(
        reader.commit.step,
        config.from_dict(reader.read_json(CONFIG)),
        _by_part(flat, wanted),
        reader.read_json(STATE),
        {name.removeprefix(prefix): tensor for name, tensor in own.items()},
    )


def load_into(path: Path, tensors: dict[str, dict[str, Tensor]], ranks: Ranks | None = None) -> Snapshot:
    """Fill `tensors` (part -> names -> plain tensors or DTensors, of any layout) in place, bit for bit.

    Every file that any rank needs is verified before any rank changes a tensor. The snapshot that comes back has the
    same tensors, the config, the state, and this rank's own state if as many ranks saved it. Raises CheckpointError
    on every rank: what is corrupt, or which name or shape is not in the checkpoint.
    """
    ranks = ranks or Ranks(0, 1, None)
    reader: ShardReader = _open_together(path, ranks)
    flat = {f"{part}/{name}": tensor for part, own in tensors.items() for name, tensor in own.items()}
    own = _own_state(reader, ranks)
    _fill(reader, flat | own, ranks)
    prefix = rank_prefix(ranks.rank)
    state = {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    return Snapshot(
        reader.commit.step, config.from_dict(reader.read_json(CONFIG)), tensors, reader.read_json(STATE), state
    )


def _open_together(path: Path, ranks: Ranks) -> ShardReader:
    """The reader of each rank, or the same CheckpointError on all."""
    opened: list[ShardReader] = []
    ranks.together(lambda: opened.append(ShardReader(path)), lambda _: [None] * ranks.size)
    return opened[0]


def _fill(reader: ShardReader, flat: dict[str, Tensor], ranks: Ranks) -> None:
    """Plan, read, verify; once all ranks have, copy."""
    planner = VerifiedLoadPlanner()

    def prepare() -> LoadPlan:
        unlike = [name for name, tensor in flat.items() if not _fits(reader.index.get(name), tensor)]
        if unlike:
            raise CheckpointError(
                f"{reader.path}: is not of this model; names or shapes differ: {', '.join(sorted(unlike)[:5])}"
            )
        planner.set_up_planner(dict(flat), reader.read_metadata(), is_coordinator=ranks.rank == 0)
        return reader.prepare_local_plan(planner.create_local_plan())

    plans: list[LoadPlan] = []
    ranks.together(lambda: plans.append(prepare()), lambda _: [None] * ranks.size)
    reader.read_data(planner.finish_plan(plans[0]), planner).wait()
    reader.reset()


def _fits(about: dict[str, Any] | None, tensor: Tensor) -> bool:
    return about is not None and list(tensor.shape) == about["shape"] and DTYPES[about["dtype"]] == tensor.dtype


def _empty(about: dict[str, Any]) -> Tensor:
    return torch.empty(about["shape"], dtype=DTYPES[about["dtype"]])


def _own_state(reader: ShardReader, ranks: Ranks) -> dict[str, Tensor]:
    """Room for this rank's own state; none when another number of ranks saved it, to whom it would mean nothing."""
    if reader.commit.ranks != ranks.size:
        return {}
    prefix = rank_prefix(ranks.rank)
    return {name: _empty(about) for name, about in reader.index.items() if name.startswith(prefix)}


def _by_part(flat: dict[str, Tensor], parts: set[str]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {part: {} for part in sorted(parts)}
    for name, tensor in flat.items():
        part, _, rest = name.partition("/")
        found[part][rest] = tensor
    return found
