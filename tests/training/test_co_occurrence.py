"""The links of co-occurrence against a ridge regression by least squares, and against EASE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import training.co_occurrence
from index.pool.links.co_occurrence import LAST_ITEMS, CoOccurrence
from training.co_occurrence import RIDGE, fit_co_occurrence

ITEMS = 8
HISTORIES = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=7), min_size=1, max_size=12)


def taken(histories: list[list[int]]) -> np.ndarray:
    """Return which items each person took: [people, items]."""
    table = np.zeros((len(histories), ITEMS))
    for person, history in enumerate(histories):
        table[person, history] = 1
    return table


def matrix(links: CoOccurrence) -> np.ndarray:
    """Return all weights, [from, to]."""
    found = np.zeros((ITEMS, ITEMS))
    for row in range(ITEMS):
        rows, scores = links.after([row])
        found[row, rows] = scores
    return found


@given(HISTORIES)
@settings(deadline=None)
def test_weights_are_those_of_a_penalised_regression_on_the_other_items(histories: list[list[int]]) -> None:
    table, found = taken(histories), matrix(fit_co_occurrence(histories, ITEMS))
    for item in range(ITEMS):
        met = [k for k in range(ITEMS) if k != item and table[:, k] @ table[:, item] > 0]
        penalty = np.sqrt(RIDGE) * np.eye(len(met))
        target = np.concatenate([table[:, item], np.zeros(len(met))])
        expected = np.zeros(ITEMS)
        expected[met] = np.linalg.lstsq(np.vstack([table[:, met], penalty]), target)[0]
        assert np.allclose(found[:, item], expected, atol=1e-7)


def test_with_all_items_as_predictors_the_links_are_those_of_ease() -> None:
    """Every two items were taken together, so that no predictor is left out."""
    rng = np.random.default_rng(0)
    histories = [rng.permutation(ITEMS)[: rng.integers(3, ITEMS)].tolist() for _ in range(200)]
    table = taken(histories)
    inverse = np.linalg.inv(table.T @ table + RIDGE * np.eye(ITEMS))
    expected = -inverse / np.diag(inverse)  # Steck, equation 8
    np.fill_diagonal(expected, 0)
    assert np.allclose(matrix(fit_co_occurrence(histories, ITEMS)), expected, atol=1e-7)


def test_only_the_nearest_items_are_predictors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.co_occurrence, "PREDICTORS", 1)
    histories = [[0, 1], [0, 1], [0, 2], [2, 3], [2, 3], [2, 3]]
    links = matrix(fit_co_occurrence(histories, ITEMS))
    assert np.flatnonzero(links[:, 0]).tolist() == [1]
    assert links[1, 0] == pytest.approx(2 / (2 + RIDGE))


def test_a_history_is_a_set_of_its_last_items() -> None:
    links = fit_co_occurrence([[0, 1, 2], [0, 1], [3, 4]], ITEMS)
    once, order, again = links.after([0, 3]), links.after([3, 0]), links.after([0, 3, 0, 0])
    assert [rows.tolist() for rows, _ in (once, order, again)] == [[1, 2, 4]] * 3
    assert np.allclose(once[1], order[1])
    assert np.array_equal(once[1], again[1])


def test_items_before_the_last_ones_count_nothing() -> None:
    many = LAST_ITEMS + 2
    chain = CoOccurrence.of(many + 1, np.arange(many), np.arange(1, many + 1), np.ones(many, np.float32))
    rows, scores = chain.after([*range(many), many - 1])
    assert rows.tolist() == list(range(3, many + 1))
    assert scores.tolist() == [1] * LAST_ITEMS


def test_a_large_log_is_sampled_and_the_sample_depends_on_the_seed_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training.co_occurrence, "MOST_PAIRS", 40)
    histories = [[k % ITEMS, (k + 1) % ITEMS] for k in range(30)]
    first, again = (matrix(fit_co_occurrence(histories, ITEMS, seed=1)) for _ in range(2))
    other = matrix(fit_co_occurrence(histories, ITEMS, seed=2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_log_without_pairs_has_no_links(tmp_path: Path) -> None:
    for histories in ([], [[]], [[1], [2], [2]]):
        links = fit_co_occurrence(histories, ITEMS)
        links.save(tmp_path / f"links-{len(histories)}")
        again = CoOccurrence.open(tmp_path / f"links-{len(histories)}", ITEMS)
        assert not len(again.after([1, 2])[0])


def test_links_survive_their_files_and_later_items(tmp_path: Path) -> None:
    links = fit_co_occurrence([[0, 1, 2], [0, 1], [3, 4]], ITEMS)
    links.updated(2).save(tmp_path / "links")
    again = CoOccurrence.open(tmp_path / "links", ITEMS + 2)
    assert np.array_equal(matrix(again), matrix(links))
    assert not len(again.after([ITEMS + 1])[0])
