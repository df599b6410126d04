"""Item-to-item transitions against a count by hand, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.pool.links.transitions import BACKWARD, DECAY, LAST_ITEMS, SHRINKAGE, WINDOW, Transitions

ITEMS = 7
HISTORIES = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=9), max_size=6)


def matrix(histories: list[list[int]]) -> np.ndarray:
    """Count every pair, one by one."""
    found = np.zeros((ITEMS, ITEMS))
    events = np.zeros(ITEMS)
    for history in histories:
        for place, row in enumerate(history):
            events[row] += 1
            for other in range(len(history)):
                distance = other - place
                if 0 < abs(distance) <= WINDOW:
                    weight = 1 if distance > 0 else BACKWARD
                    found[row, history[other]] += weight / abs(distance)
    return found / (events[:, None] + SHRINKAGE)


def dense(transitions: Transitions, history: list[int]) -> np.ndarray:
    rows, scores = transitions.after(history)
    found = np.zeros(ITEMS)
    found[rows] = scores
    return found


@given(HISTORIES, st.lists(st.integers(0, ITEMS - 1), max_size=LAST_ITEMS))
def test_scores_are_decayed_sums_of_counted_pairs(histories: list[list[int]], history: list[int]) -> None:
    transitions = Transitions.build(histories, ITEMS, most=None)
    table = matrix(histories)
    expected = sum((DECAY**k * table[row] for k, row in enumerate(reversed(history))), np.zeros(ITEMS))
    assert np.allclose(dense(transitions, history), expected, rtol=1e-5)
    rows, _ = transitions.after(history)
    assert np.array_equal(rows, np.unique(rows))


@given(HISTORIES, st.integers(1, 3))
def test_the_largest_of_each_item_are_kept(histories: list[list[int]], most: int) -> None:
    every, few = Transitions.build(histories, ITEMS, None), Transitions.build(histories, ITEMS, most)
    for row in range(ITEMS):
        kept, all_of_it = dense(few, [row]), dense(every, [row])
        assert np.count_nonzero(kept) == min(most, np.count_nonzero(all_of_it))
        assert np.array_equal(kept[kept > 0], all_of_it[kept > 0])
        left_out = all_of_it[(kept == 0) & (all_of_it > 0)]
        assert not len(left_out) or left_out.max() <= kept[kept > 0].min()


def test_only_the_last_items_count() -> None:
    transitions = Transitions.build([[0, 1], [2, 3]], ITEMS)
    assert dense(transitions, [0, *[2] * LAST_ITEMS])[1] == 0
    assert dense(transitions, [2, 0])[1] > dense(transitions, [0, 2])[1] > 0


def test_a_log_without_pairs_and_an_empty_history_have_no_transitions() -> None:
    assert not dense(Transitions.build([[1], [], [2]], ITEMS), [1, 2]).any()
    assert not dense(Transitions.build([[1, 2]], ITEMS), []).any()


def test_they_survive_their_files_and_later_items(tmp_path: Path) -> None:
    transitions = Transitions.build([[0, 1, 2], [2, 0], [5, 6]], ITEMS)
    transitions.save(tmp_path / "transitions")
    again = Transitions.open(tmp_path / "transitions", ITEMS)
    longer = transitions.updated(2)
    for row in range(ITEMS):
        assert np.array_equal(dense(again, [row]), dense(transitions, [row]))
        assert np.array_equal(dense(longer, [row]), dense(transitions, [row]))
    assert not len(longer.after([ITEMS, ITEMS + 1])[0])
    longer.save(tmp_path / "longer")
    assert Transitions.open(tmp_path / "longer", ITEMS + 2).nbytes == longer.nbytes
    with pytest.raises(ValueError, match="offsets"):
        Transitions.open(tmp_path / "longer", ITEMS)


@pytest.mark.parametrize("name", ["offsets.npy", "followers.npy", "weights.npy"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "transitions"
    Transitions.build([[0, 1, 2]], ITEMS).save(folder)
    values = np.load(folder / name)
    np.save(folder / name, np.full_like(values, -1))
    with pytest.raises(ValueError, match=name):
        Transitions.open(folder, ITEMS)
    (folder / name).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=name):
        Transitions.open(folder, ITEMS)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        Transitions.open(folder, ITEMS)
