"""Histories as columns: the same as objects, whether in memory or mapped; and what is damaged is made again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_sets import same, small_data_set

from index.sequence.events import Event, Task
from training.data import columns, dataset
from training.data.columns import read_columns, write_columns
from training.data.dataset import DataSet
from training.data.histories import Histories, UserHistory
from training.data.splits import chronological_users, leave_one_out

QUERIES = st.none() | st.sampled_from(["red shoes", "a", "ü"])


@st.composite
def people(draw: st.DrawFn) -> list[UserHistory]:
    stamps = draw(st.sampled_from([st.integers(-(2**62), 2**62), st.floats(-1e9, 1e9)]))
    found = []
    for k in range(draw(st.integers(1, 5))):
        asked = draw(st.lists(QUERIES, min_size=1, max_size=6))
        events = tuple(
            Event(draw(st.integers(0, 9))) if query is None else Event(1, Task.SEARCH, query)
            for query in asked
        )
        simulated = tuple(draw(QUERIES) for _ in asked)
        found.append(UserHistory(f"u{k}", events, simulated, tuple(draw(stamps) for _ in asked)))
    return found


@given(people())
def test_columns_give_the_objects_back(users: list[UserHistory]) -> None:
    histories = Histories.of(users)
    assert list(histories) == users
    assert histories[1:] == users[1:]
    assert histories[-1] == users[-1]
    for k, user in enumerate(users):
        for end in (None, 0, 1, len(user.events), -1):
            assert histories.events(k, end) == user.events[:end]
        for position in range(len(user.events)):
            assert histories.search_query(k, position) == user.search_query(position)
    with pytest.raises(IndexError):
        histories[len(users)]


@given(people())
def test_splits_are_those_of_the_objects(users: list[UserHistory]) -> None:
    split = leave_one_out(DataSet(small_data_set().info, small_data_set().catalogue, users))
    long = [user for user in users if len(user.events) >= 3]
    assert list(split.train) == [u.events[:-2] if u in long else u.events for u in users]
    for cases, place in ((split.validation, -2), (split.test, -1)):
        expected = [(u.user_id, u.events[:place], u.events[place].item, u.search_query(place)) for u in long]
        assert [(c.user_id, c.history, c.target, c.query) for c in cases] == expected
        assert list(cases.with_query()) == [case for case in cases if case.query is not None]


def test_people_in_order_of_time_are_split_as_their_objects_are() -> None:
    rng = np.random.default_rng(0)
    users = [
        UserHistory(f"u{k}", (Event(k % 10),) * 2, (None,) * 2, (0, int(rng.integers(1, 9))))
        for k in range(40)
    ]
    split = chronological_users(DataSet(small_data_set().info, small_data_set().catalogue, users))
    ordered = sorted(users, key=lambda user: user.timestamps[-1])
    assert list(split.train) == [user.events for user in ordered[:32]]
    assert [case.user_id for case in (*split.validation, *split.test)] == [u.user_id for u in ordered[32:]]


def test_a_large_log_is_mapped_and_equals_the_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (columns, dataset):
        monkeypatch.setattr(module, "LARGE", 1)
    made = small_data_set()
    folder = tmp_path / "data"
    made.save(folder)
    assert (folder / "columns").is_dir()
    mapped = DataSet.load(folder)
    assert isinstance(mapped.users.items, np.memmap)
    assert same(mapped, made)
    assert mapped.users.on(np.arange(10, dtype=np.int32)) == made.users
    again = tmp_path / "again"
    mapped.save(again)
    assert same(DataSet.load(again), made)


def test_columns_are_made_again_when_a_file_changes_or_they_are_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "LARGE", 1)
    folder = tmp_path / "data"
    small_data_set((3, 4)).save(folder)
    write_columns(folder, small_data_set((5, 6)).users)  # as if made from other files ...
    os.utime(folder / "interactions.parquet", ns=(1, 1))  # ... which were replaced since
    assert read_columns(folder) is None
    assert same(DataSet.load(folder), small_data_set((3, 4)))
    assert read_columns(folder) == small_data_set((3, 4)).users
    for name in ("items.npy", "texts.arrow", "key.json"):
        (folder / "columns" / name).write_bytes(b"damaged")
        assert read_columns(folder) is None
        assert same(DataSet.load(folder), small_data_set((3, 4)))
        assert read_columns(folder) is not None


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    small_data_set().save(folder)
    monkeypatch.setattr(columns, "LARGE", 1)
    (folder / "columns").write_text("a file in the way")
    assert same(DataSet.load(folder), small_data_set())
