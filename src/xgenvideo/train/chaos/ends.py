"""How a run ended, and whether two ended alike: every tensor bit for bit, every logged loss, every sample once."""

from dataclasses import dataclass
from pathlib import Path

import torch

from xgenvideo.checkpoint import load, newest_verified, read_account
from xgenvideo.checkpoint.run import CHECKPOINTS
from xgenvideo.train.log import read_metrics


@dataclass(frozen=True)
class End:
    """`differences` from the undisturbed run (none: bitwise the same), and what the ledger says."""

    differences: tuple[str, ...]
    lost: int
    replayed: int
    steps_redone_max: int
    problems: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Bitwise the undisturbed run, every sample exactly once."""
        return not self.differences and not self.lost and not self.replayed and not self.problems

    def __str__(self) -> str:
        named = ", ".join((*self.differences[:3], *self.problems[:3]))
        return f"{len(self.differences)} differences, {self.lost} lost, {self.replayed} replayed: {named}"


def end_of(out: Path, whole: Path) -> End:
    """Compare the run `out` with the undisturbed run `whole`."""
    account = read_account(out)
    differences = (*tensor_differences(out, whole), *loss_differences(out, whole))
    return End(differences, account.lost, account.replayed, account.steps_redone_max, tuple(account.problems))


def tensor_differences(out: Path, whole: Path) -> list[str]:
    """Names of trained tensors and optimizer states that are not bit for bit the same at the end."""
    found, expected = (load(newest_verified(run / CHECKPOINTS)) for run in (out, whole))
    if found.step != expected.step:
        return [f"step {found.step} instead of {expected.step}"]
    return [
        f"{part}/{name}"
        for part, tensors in expected.tensors.items()
        for name, tensor in tensors.items()
        if not torch.equal(tensor, found.tensors[part][name])
    ]


def loss_differences(out: Path, whole: Path) -> list[str]:
    """Steps whose logged loss is not the same."""
    expected = {row["step"]: row["loss"] for row in read_metrics(whole)}
    found = {row["step"]: row["loss"] for row in read_metrics(out)}
    return [f"loss of step {step}" for step, loss in expected.items() if found.get(step) != loss]
