"""Filters of logs against the plainest reading of their words, over random logs."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.sources.filters import Filters, kept_events

Row = tuple[int, int, bool, int]  # person, item, search, time
LOGS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans(), st.integers(0, 9)), min_size=1, max_size=40
)
CORES, NEWEST = st.sampled_from([0, 1, 2, 3]), st.sampled_from([0, 1, 2, 4])


def filtered(rows: list[Row], filters: Filters) -> tuple[list[int], dict[str, int]]:
    people, items, searches, times = (np.array(column) for column in zip(*rows, strict=True))
    kept, dropped = kept_events(people, items, searches.astype(bool), times, filters)
    return kept.tolist(), dropped


def has_both(rows: list[Row], person: int) -> bool:
    return {row[2] for row in rows if row[0] == person} == {True, False}


def one_at_a_time(rows: list[Row], core: int, both: bool, newest: int) -> list[int]:
    """Drop what does not belong, one row after the other, until nothing changes."""
    kept = [k for k, row in enumerate(rows) if not both or has_both(rows, row[0])]
    if newest:
        order = sorted(kept, key=lambda k: (rows[k][3], k))
        of_each = {person: [k for k in order if rows[k][0] == person][-newest:] for person in range(6)}
        kept = sorted(k for each in of_each.values() for k in each)
    while True:
        left = [rows[k] for k in kept]
        people, items = Counter(row[0] for row in left), Counter(row[1] for row in left)
        wrong = [
            k for k in kept
            if people[rows[k][0]] < core or items[rows[k][1]] < core or (both and not has_both(left, rows[k][0]))
        ]  # fmt: skip
        if not wrong:
            return kept
        kept.remove(wrong[-1])


@given(LOGS, CORES, st.booleans(), NEWEST)
@settings(max_examples=150, deadline=None)
def test_what_is_kept_and_counted(rows: list[Row], core: int, both: bool, newest: int) -> None:
    kept, dropped = filtered(rows, Filters(both_behaviours=both, core=core, newest=newest))
    assert kept == one_at_a_time(rows, core, both, newest)
    assert len(kept) + sum(dropped.values()) == len(rows)


@given(LOGS, st.booleans(), st.integers(0, 3))
@settings(deadline=None)
def test_people_are_drawn_by_the_seed_and_a_larger_draw_holds_the_smaller(
    rows: list[Row], both: bool, seed: int
) -> None:
    eligible = {row[0] for row in rows if not both or has_both(rows, row[0])}
    before: set[int] = set()
    for users in range(1, 8):
        kept, dropped = filtered(rows, Filters(both_behaviours=both, users=users, seed=seed))
        drawn = {rows[k][0] for k in kept}
        assert len(drawn) == min(users, len(eligible))
        assert before <= drawn <= eligible
        assert [k for k, row in enumerate(rows) if row[0] in drawn] == kept
        assert len(kept) + sum(dropped.values()) == len(rows)
        before = drawn


def test_another_seed_draws_others() -> None:
    rows: list[Row] = [(person, 0, False, 0) for person in range(50)]
    draws = {tuple(filtered(rows, Filters(users=5, seed=seed))[0]) for seed in range(5)}
    assert len(draws) == 5


def test_nothing_is_asked_for() -> None:
    rows: list[Row] = [(0, 0, True, 5), (0, 0, True, 5)]
    assert filtered(rows, Filters()) == ([0, 1], {})
    assert filtered(rows, Filters(core=3))[0] == []
