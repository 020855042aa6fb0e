"""Loss spikes: noticed against the median of the steps before (the remedy is that of PaLM, arXiv 2204.02311, 5.1)."""

import math
import statistics

from xgenvideo.config import SafetyConfig


class Spikes:
    """Remembers the losses of the last steps in `recent`, which is saved with the run so that a resumed one decides
    alike.
    """

    def __init__(self, config: SafetyConfig, recent: list[float]) -> None:
        self.config, self.recent = config, recent

    def seen(self, loss: float) -> bool:
        """Whether `loss` is a spike; one that is not joins the window. Needs a whole window to judge by."""
        if not self.config.spike_factor or not math.isfinite(loss):
            return False
        full = len(self.recent) >= self.config.spike_window
        if full and loss > self.config.spike_factor * statistics.median(self.recent):
            return True
        self.recent.append(loss)
        del self.recent[: -self.config.spike_window]
        return False
