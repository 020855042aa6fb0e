"""The ledger proves that every sample was consumed once an epoch, and tells when one was not."""

import json
from pathlib import Path

import pytest

from xgenvideo.checkpoint import Account, Ledger, Ranks, read_account
from xgenvideo.errors import DataError

EPOCH = 10
BATCH = 4


def key(position: int) -> str:
    """The sample at a position: another order in each epoch."""
    epoch, place = divmod(position, EPOCH)
    return f"clip{(place * 3 + epoch) % EPOCH}"


def attempt(out: Path, first: int, last: int, ranks: int = 1, **wrong: int) -> None:
    """Steps first + 1 to last on so many ranks. `wrong`: a shift of positions from a step on, or of keys."""
    number = None
    for rank in range(ranks):
        with pytest.MonkeyPatch.context() as patch:
            # Ranks of one process: rank 0 counts the attempts, the others are told.
            if number is not None:
                patch.setattr("xgenvideo.checkpoint.ledger._attempts", lambda folder, number=number: number - 1)
            talk = Ranks(0, 1, None)
            talk.rank, talk.size = (0, 1) if ranks == 1 else (rank, ranks)
            patch.setattr(Ranks, "together", lambda self, local, lead, number=number: number or lead([local()])[0])
            ledger = Ledger(out, talk, first, EPOCH)
        number = ledger.attempt
        with ledger:
            for step in range(first + 1, last + 1):
                share = BATCH // ranks
                start = (step - 1) * BATCH + rank * share + (wrong.get("shift", 0) if step == last else 0)
                keys = [key(start + n + (wrong.get("other", 0))) for n in range(share)]
                ledger.add(step, start, keys)


def test_crashes_and_layouts_leave_every_sample_once(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 4)
    attempt(tmp_path, 3, 7, ranks=2)
    attempt(tmp_path, 2, 5, ranks=4)
    attempt(tmp_path, 5, 6)
    account = read_account(tmp_path)
    assert (account.lost, account.replayed, account.problems) == (0, 0, [])
    assert (account.steps, account.samples, account.epochs) == (6, 24, {0: 10, 1: 10, 2: 4})
    assert (account.attempts, account.layouts) == (4, [1, 2, 4, 1])
    assert (account.steps_redone, account.steps_redone_max) == (1 + 5, 5)
    assert account.ends == {step: step * BATCH for step in range(1, 7)}


def told(account: Account) -> str:
    return f"lost {account.lost}, replayed {account.replayed}, {account.problems}"


def test_a_lost_a_replayed_and_another_sample_are_told(tmp_path: Path) -> None:
    attempt(tmp_path / "lost", 0, 3, shift=2)
    assert told(read_account(tmp_path / "lost")) == "lost 2, replayed 0, []"
    attempt(tmp_path / "replayed", 0, 3, shift=-1)
    assert read_account(tmp_path / "replayed").replayed == 1
    attempt(tmp_path / "other", 0, 4)
    attempt(tmp_path / "other", 2, 4, other=1)
    assert any("redone steps differ" in problem for problem in read_account(tmp_path / "other").problems)
    # A state that was not saved: the next attempt goes on beyond what the last one committed.
    attempt(tmp_path / "gap", 0, 2)
    attempt(tmp_path / "gap", 3, 4)
    account = read_account(tmp_path / "gap")
    assert account.lost == BATCH
    assert "1 of the steps 1 to 4 are not in the ledger" in account.problems


def test_batches_that_were_passed_over_are_neither_lost_nor_learnt(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 3)
    with Ledger(tmp_path, Ranks(0, 1, None), 2, EPOCH) as ledger:
        ledger.skip(2, 2 * BATCH, BATCH)
        ledger.add(3, 3 * BATCH, [key(12 + n) for n in range(BATCH)])
    account = read_account(tmp_path)
    assert (account.skipped, account.samples, account.lost, account.replayed) == (4, 12, 0, 0)


def test_an_unfinished_last_line_is_a_death_and_any_other_is_damage(tmp_path: Path) -> None:
    attempt(tmp_path, 0, 3)
    [path] = (tmp_path / "ledger").iterdir()
    whole = path.read_text()
    path.write_text(whole + '{"step":4,"posi')
    assert read_account(tmp_path).steps == 3
    path.write_text(whole.replace('{"step":2', '{"ste'))
    with pytest.raises(DataError, match="line 3 cannot be read"):
        read_account(tmp_path)
    path.write_text("")
    with pytest.raises(DataError, match="holds no ledger"):
        read_account(tmp_path)


def test_a_ledger_is_never_written_twice(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        with Ledger(tmp_path, Ranks(0, 1, None), 0, EPOCH) as ledger:
            assert ledger.attempt == number
            assert ledger.sync() == {"attempt": number, "lines": 1}
    files = sorted(path.name for path in (tmp_path / "ledger").iterdir())
    assert files == [f"attempt-0000{number}-rank-00000.jsonl" for number in (1, 2, 3)]
    header = json.loads((tmp_path / "ledger" / files[0]).read_text())
    assert header == {"attempt": 1, "ranks": 1, "rank": 0, "resumed_step": 0, "epoch_samples": EPOCH}
