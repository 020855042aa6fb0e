"""What a run leaves on disk, in an order that no death can spoil: log and ledger first, then the checkpoint."""

from pathlib import Path
from types import TracebackType

from xgenvideo.checkpoint import PERMANENT, Lease, Ledger, Retention, Saved, Saver
from xgenvideo.checkpoint.run import CHECKPOINTS
from xgenvideo.errors import TrainError
from xgenvideo.parallel.phases import SAVING
from xgenvideo.train.log import Log, Silent
from xgenvideo.train.resume import Training, find_checkpoint, restore, snapshot_of


class Keeper:
    """Ledger and checkpoints of one rank of a run. Every rank makes one and calls it alike."""

    def __init__(self, training: Training, out: Path, log: Log | Silent, lease: Lease | None) -> None:
        config = training.config
        self.training, self.out, self.log = training, out, log
        self.newest = training.started_from
        safety = config.safety
        retention = Retention(config.train.keep_checkpoints, safety.failed_saves_allowed, safety.copy_to)
        self._saver = Saver(out / CHECKPOINTS, retention, lease, training.ranks)
        self._ledger = self._open_ledger()

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._saver.__exit__(kind, error, trace)
        self._ledger.__exit__(kind, error, trace)

    def note(self) -> None:
        """Write down which samples this rank read for the step that is done."""
        read = self.training.loader.last
        self._ledger.add(self.training.step, read.position, read.keys, read.substituted, read.bad)

    def save(self, kind: str = PERMANENT) -> None:
        """Save this step in the background, once log and ledger are on disk: they may be ahead of a checkpoint, never
        behind it. Raises CheckpointError when more saves in a row have failed than safety.failed_saves_allowed.
        """
        self.training.world.phases.enter(SAVING)
        self.log.sync()
        self._tell(self._saver.save_async(snapshot_of(self.training, self._ledger.sync()), kind))

    def wait(self) -> Path | None:
        """Wait for the save that is under way; returns the newest checkpoint. Raises as `save` does."""
        self.training.world.phases.enter(SAVING)
        self._tell(self._saver.wait())
        return self.newest

    def go_back(self) -> None:
        """Restore the newest checkpoint after a loss spike, and pass over the batches since.

        Raises TrainError when that was done as often as is allowed, or when there is nothing to go back to.
        """
        training, allowed = self.training, self.training.config.safety.spike_rewinds
        at, pairs = training.step, training.config.train.global_batch_pairs
        self.wait()
        path = find_checkpoint(self.out, training.ranks)[0]
        if path is None or training.rewinds >= allowed:
            why = "there is no checkpoint to go back to" if path is None else f"after going back {allowed} times"
            cure = "lower optimizer.lr, or raise safety.spike_factor or safety.spike_rewinds (0 rewinds: never go back)"
            raise TrainError(f"step {at}: the loss spiked, {why}; {cure}")
        rewinds = training.rewinds + 1  # the checkpoint may be older than a way back
        restore(training, path)
        training.rewinds = rewinds
        self._ledger.__exit__(None, None, None)
        self._ledger = self._open_ledger()
        samples = (at - training.step) * pairs
        self._ledger.skip(training.step, training.loader.skip(samples), samples)
        self.log.back_to(training.step)
        self.log.say(f"step {at}: the loss spiked; back to {path}, {samples} samples are passed over")

    def _open_ledger(self) -> Ledger:
        training = self.training
        return Ledger(self.out, training.ranks, training.step, training.loader.epoch_samples)

    def _tell(self, saved: Saved | None) -> None:
        if saved is None:
            return
        self.newest = saved.path or self.newest
        self.log.say(str(saved))
