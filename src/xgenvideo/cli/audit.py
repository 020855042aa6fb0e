"""`xgv audit`: proves the accounting of a dataset or a run, and says what it checked. Every failure raises."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from xgenvideo.errors import CheckpointError, DataError


def audit(folder: Path) -> Iterator[str]:
    """A line for everything that was checked and holds. Raises DataError or CheckpointError at what does not."""
    if (folder / "dataset.json").is_file():
        return audit_dataset(folder)
    if (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
        return audit_run(folder)
    raise DataError(f"{folder}: is neither a dataset (no dataset.json) nor a run (no config.json and checkpoints)")


def audit_dataset(folder: Path) -> Iterator[str]:
    """Hashes of all files, the manifest against the shards, and every pair that came in against what became of it."""
    from xgenvideo.data.dataset import open_dataset

    dataset = open_dataset(folder)
    yield f"manifest: SHA-256 as recorded, fingerprint {dataset.fingerprint}"
    dataset.verify()
    yield "shards: every SHA-256 as recorded"
    seen = Counter(split for split in dataset.counts for _ in dataset.rows(split))
    _same(folder, "samples by split in the manifest", dict(seen), "in dataset.json", _nonzero(dataset.counts))
    frames = 0
    for split in dataset.counts:
        for row in dataset.rows(split):
            sample = dataset.read_row(row)
            _same(folder, f"frames of {row.key} in its shard", len(sample.jpegs), "in the manifest", row.frames)
            _same(folder, f"caption of {row.key} in its shard", sample.caption, "in the manifest", row.caption)
            frames += row.frames
    yield f"samples: {len(dataset)} read back, {frames} frames, as the manifest says"
    yield from _audit_decisions(folder, lambda: (key for split in dataset.counts for key in dataset.keys(split)))


def _audit_decisions(folder: Path, kept: Callable[[], Iterable[str]]) -> Iterator[str]:
    """Sums of audit.jsonl: in = kept + dropped, nothing twice, and what was kept is what is there."""
    from xgenvideo.curate.takedown import read_audit

    if not (folder / "audit.jsonl").is_file():
        raise DataError(
            f"{folder / 'audit.jsonl'}: is missing, so what became of each input cannot be shown; curate again"
        )
    reasons = Counter(line["reason"] for line in read_audit(folder))

    def said() -> Iterator[str]:
        return (line["key"] for line in read_audit(folder) if line["reason"] is None)

    if _sum_of(said()) != _sum_of(kept()):  # only then are keys held
        _same(folder, "keys that audit.jsonl keeps", sorted(said()), "in the dataset", sorted(kept()))
    stayed = reasons.pop(None, 0)
    dropped = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) or "none"
    yield f"decisions: {stayed + reasons.total()} in = {stayed} kept + {reasons.total()} dropped ({dropped})"


def _sum_of(keys: Iterable[str]) -> tuple[int, int]:
    """How many, and the sum of their hashes: equal for the same keys in any order."""
    count = total = 0
    for key in keys:
        count += 1
        total += int.from_bytes(hashlib.blake2b(key.encode(), digest_size=16).digest(), "little")
    return count, total


def audit_run(folder: Path) -> Iterator[str]:
    """The config, every checkpoint's bytes, the steps of metrics.jsonl, and the ledger of samples."""
    from xgenvideo.checkpoint import verify
    from xgenvideo.config import load
    from xgenvideo.demo.score import read_lines

    config = load(folder / "config.json")
    yield f"config: {config.name}, valid, {config.train.steps} steps"
    found = sorted((folder / "checkpoints").glob("step-*"))
    if not found:
        raise CheckpointError(f"{folder / 'checkpoints'}: holds no checkpoint yet")
    for path in found:
        verify(path)
        yield f"checkpoint {path.name}: every byte as committed"
    steps = [line["step"] for line in read_lines(folder / "metrics.jsonl") if "step" in line]
    if any(later <= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
        raise DataError(f"{folder / 'metrics.jsonl'}: steps do not ascend")
    yield f"metrics: {len(steps)} lines, steps ascend to {steps[-1] if steps else 0}"
    if (folder / "ledger").is_dir():
        yield from _audit_ledger(folder)


def _same(folder: Path, what: str, found: Any, where: str, expected: Any) -> None:
    if found != expected:
        raise DataError(f"{folder}: {what}: {found!r}; {where}: {expected!r}")


def _nonzero(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _audit_ledger(folder: Path) -> Iterator[str]:
    """Every sample exactly once an epoch, over all attempts, and every checkpoint at the place that the ledger says."""
    from xgenvideo.checkpoint import read_account
    from xgenvideo.checkpoint.reader import ShardReader
    from xgenvideo.checkpoint.snapshot import STATE, step_folders

    account = read_account(folder)
    _same(folder, "samples lost and replayed in the ledger", (account.lost, account.replayed), "expected", (0, 0))
    _same(folder, "the ledger", account.problems, "expected", [])
    for step, path in step_folders(folder / "checkpoints"):
        consumed = ShardReader(path).read_json(STATE)["loader"]["samples_consumed"]
        _same(folder, f"samples consumed by {path.name}", consumed, "in the ledger", account.ends.get(step))
    yield f"ledger: {account}"
    for key, reason in sorted(account.bad.items()):
        yield f"unreadable: {key}: {reason}"
