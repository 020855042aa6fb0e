"""What became of a fault: the promise that was put to the test, whether it held, and what was seen."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

PROMISES = {
    "atomic": "a save that dies at any instant leaves the checkpoint before it the newest",
    "verified": "no damaged byte is ever loaded; the run goes on from the checkpoint before",
    "no code": "nothing that is read from a checkpoint is ever run",
    "bitwise": "a run that was stopped, killed or hung ends with the weights of the undisturbed run, bit for bit",
    "exactly once": "no sample is lost or replayed",
    "one writer": "a second job on a run folder is refused, and changes nothing",
    "kept": "older checkpoints stay intact whatever the disk does",
    "finite": "a gradient that is not a number skips one step, and is told",
    "named": "a rank that hangs or is slow is named",
    "clock": "a wrong clock changes nothing",
}


@dataclass(frozen=True)
class Verdict:
    """One fault's. `figures`: what was counted; `detail`: what went wrong, or how it was done."""

    fault: str
    promise: str
    held: bool
    detail: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, the promise in words."""
        return asdict(self) | {"promise": self.promise, "promise_in_words": PROMISES[self.promise]}

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value}" for name, value in self.figures.items())
        told = "; ".join(part for part in (figures, self.detail) if part)
        return f"{'held  ' if self.held else 'BROKEN'}  {self.fault}: {PROMISES[self.promise]}" + (
            f" ({told})" if told else ""
        )


def table(verdicts: Sequence[Verdict]) -> str:
    """A line a verdict."""
    return "\n".join(str(verdict) for verdict in verdicts)
