"""`xgv checkpoints`: what a run has saved, read back from disk, and what may go."""

from collections.abc import Iterator
from pathlib import Path

from xgenvideo.errors import CheckpointError, DataError


def list_checkpoints(run: Path) -> Iterator[str]:
    """A line for each checkpoint, newest first. Raises CheckpointError at the end if one does not verify."""
    from xgenvideo.checkpoint import standings

    found = standings(_folder(run))
    for standing in found:
        yield str(standing)
    corrupt = [standing.path.name for standing in found if standing.reason]
    if corrupt or not found:
        what = f"{', '.join(corrupt)} of {len(found)} do not verify" if found else "holds no checkpoint yet"
        raise CheckpointError(f"{_folder(run)}: {what}")


def prune(run: Path, keep: int | None) -> list[Path]:
    """Remove what retention no longer needs, and what dead saves left. Raises TrainError while a job uses the run."""
    from xgenvideo.checkpoint import retain, sweep, take_lease
    from xgenvideo.config import load

    folder = _folder(run)
    kept = load(run / "config.json").train.keep_checkpoints if keep is None else keep
    with take_lease(run):
        sweep(folder)
        return retain(folder, kept)


def bring(run: Path, url: str) -> list[Path]:
    """Bring the copies that the run does not have. Raises TrainError while a job uses the run."""
    from xgenvideo.checkpoint import take_lease
    from xgenvideo.checkpoint.remote import pull

    with take_lease(run):
        return pull(url, run / "checkpoints")


def _folder(run: Path) -> Path:
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise DataError(f"{run}: is not a run folder (it has no checkpoints)")
    return folder
