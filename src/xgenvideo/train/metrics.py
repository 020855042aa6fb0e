"""What one step measured."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Metrics:
    """One step's figures. tokens and frames count what is computed, padding included; valid_tokens what is learnt."""

    step: int
    loss_next_token: float
    loss_contrastive: float
    grad_norm: float
    lr: float
    skipped: bool
    pairs: int
    valid_tokens: int
    tokens: int
    frames: int

    def to_dict(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)
