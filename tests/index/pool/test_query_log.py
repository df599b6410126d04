"""The query log compared with counting in plain Python; and its files, whole or damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.pool.query_log import QueryLog, normal_form

CHOICES = [
    ("ann", "Red Hat", 3), ("ann", "red hat!", 3), ("bob", "RED  HÀT", 3), ("bob", "red hat", 1), ("cid", "red hat", 7),
    ("ann", "blue", 2), ("ann", "blue", 4), ("bob", "hat red", 5), ("cid", "?!", 1), ("dan", "?!", 1),
    ("ann", "パン", 6), ("dan", "ﾊﾟﾝ", 6),
]  # fmt: skip
LOG = QueryLog.build(CHOICES)


def chosen(log: QueryLog, query: str) -> list[tuple[int, int]]:
    rows, counts = log.chosen(query)
    return list(zip(rows.tolist(), counts.tolist(), strict=True))


def test_different_people_are_counted_for_the_same_words() -> None:
    assert chosen(LOG, "red hat") == [(3, 2), (1, 1), (7, 1)]
    assert chosen(LOG, "Red, hat") == chosen(LOG, "red hat")
    assert chosen(LOG, "パン") == [(6, 2)]
    assert chosen(LOG, "blue") == []  # of one person
    assert chosen(LOG, "hat red") == []
    assert chosen(LOG, "?!") == []
    assert chosen(LOG, "") == []
    assert len(LOG) == 2
    assert chosen(QueryLog.build(CHOICES, people=1), "blue") == [(2, 1), (4, 1)]
    assert chosen(QueryLog.build(CHOICES, people=3), "パン") == []


def test_at_least_one_person_is_needed() -> None:
    with pytest.raises(ValueError, match="at least one person, not 0"):
        QueryLog.build([], people=0)


NAMES = st.sampled_from(["a", "b", "c"])
QUERIES = st.sampled_from(["x", "X!", "x y", "y x", "é", "e", "?"])


@given(st.lists(st.tuples(NAMES, QUERIES, st.integers(0, 4)), max_size=30), QUERIES, st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_counts_equal_those_of_sets(choices: list[tuple[str, str, int]], query: str, people: int) -> None:
    same = {(user, row) for user, typed, row in choices if normal_form(typed) == normal_form(query) != ""}
    counts = {row: sum(row == other for _, other in same) for _, row in same}
    typed_by = {user for user, _ in same}
    expected = (
        sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])) if len(typed_by) >= people else []
    )
    assert chosen(QueryLog.build(choices, people), query) == expected
    assert chosen(QueryLog.build(reversed(choices), people), query) == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LOG.save(tmp_path / "log")
    return tmp_path / "log"


def test_a_stored_log_gives_the_same_choices_and_holds_no_query(folder: Path) -> None:
    again = QueryLog.open(folder, items=8)
    assert (len(again), again.people, again.nbytes) == (len(LOG), 2, LOG.nbytes)
    assert chosen(again, "red hat") == chosen(LOG, "red hat")
    for path in folder.iterdir():
        assert b"hat" not in path.read_bytes()


def test_an_empty_log_can_be_stored(tmp_path: Path) -> None:
    QueryLog.build([]).save(tmp_path)
    assert chosen(QueryLog.open(tmp_path, items=1), "x") == []


FILES = ["query_counts.npy", "query_first.npy", "query_hashes.npy", "query_rows.npy", "query_log.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    assert sorted(FILES) == sorted(path.name for path in folder.iterdir())
    content = (folder / name).read_bytes()
    for damaged in (
        b"",
        content[:-9],
        b"\x80" * 200,
        b'{"format": 1, "people": "2"}',
        b'{"format": 1, "people": 0}',
    ):
        (folder / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=name):
            QueryLog.open(folder, items=8)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=name):
        QueryLog.open(folder, items=8)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".npy")])
def test_no_number_is_used_before_it_is_checked(folder: Path, name: str) -> None:
    path = folder / name
    values = np.load(path)
    limits = np.iinfo(values.dtype)
    wrong = [values.astype(np.float32), values[None], values[:-1], np.append(values, values[-1:])]
    for place, number in ((0, limits.max), (-1, limits.min)):
        changed = values.copy()
        changed[place] = number
        wrong.append(changed)
    for some in wrong[:-2] if name == "query_counts.npy" else wrong:
        np.save(path, some)
        with pytest.raises(ValueError, match=str(folder)):
            QueryLog.open(folder, items=8)


def test_a_log_of_another_catalogue_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"query_rows.npy is damaged: its numbers must lie in 0 … 6"):
        QueryLog.open(folder, items=7)
