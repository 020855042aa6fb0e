"""The bench of the encoder's placement: its own arithmetic."""

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def test_played_seconds_are_those_of_1f1b_with_a_core_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from placement import EVERYWHERE, FIRST, Spent, heavy, own_core_seconds, quartiles

    config, ranks, microbatches = heavy(), 4, 8
    text = [[0.5] * microbatches, [0.5] * microbatches, [], []]
    phases = {"encode": 3.0, "resample": 1.0, "join": 2.0, "contrast": 6.0, "learn": 60.0, "update": 1.0}
    tasks = [[2.0 if rank == 1 else 1.0] * (2 * microbatches) for rank in range(ranks)]
    spent = [Spent((1.0, 1.0), 9.0, phases, text[rank], tasks[rank]) for rank in range(ranks)]
    # The second stage takes 4 s a microbatch and never waits between the first stage's first forward and last backward.
    pipeline = 1.0 + microbatches * 4.0 + 1.0
    lower_half = (microbatches + 1) * 0.5
    join, rest = 2.0 + 6.0, 60.0 - 16.0 + 1.0
    assert own_core_seconds(spent, config) == 3.0 + 1.0 + join + lower_half + pipeline + rest
    assert quartiles({EVERYWHERE: [1.0] * 3, FIRST: [2.0, 3.0, 4.0]}) == [2.0, 3.0, 4.0]
