"""The data set folder: round trip, every kind of damage, protection from overwriting, and splits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from support.data_sets import same, small_data_set

from index.catalogue import Catalogue, Item
from index.sequence.events import Event, Task
from training.data.dataset import DataSet
from training.data.describe import describe, quantiles
from training.data.histories import UserHistory
from training.data.schema import DataError, DataInfo
from training.data.sources.simulation import Simulation
from training.data.splits import leave_one_out


def test_save_and_load_give_the_same_back(tmp_path: Path) -> None:
    dataset = small_data_set()
    dataset.save(tmp_path / "data")
    loaded = DataSet.load(tmp_path / "data")
    assert same(dataset, loaded)
    assert loaded.info == dataset.info
    counts = {"users": 4, "items": 10, "interactions": 11, "search": 4, "recommendation": 7}
    assert dict(loaded.info.counts) == counts
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
WORDS = TEXT.filter(lambda text: text.strip() != "")


@st.composite
def data_sets(draw: st.DrawFn) -> DataSet:
    items = [
        Item(f"i{n}", draw(WORDS).strip(), draw(TEXT), tuple(draw(st.lists(TEXT, max_size=2))))
        for n in range(4)
    ]
    stamp = draw(st.sampled_from([st.integers(-(2**62), 2**62), st.floats(-1e15, 1e15)]))
    users = []
    for user in draw(st.lists(TEXT.filter(bool), min_size=1, max_size=4, unique=True)):
        queries = draw(st.lists(st.none() | WORDS, min_size=1, max_size=6))
        events = tuple(
            Event(draw(st.integers(0, 3)), Task.SEARCH, query) if query else Event(draw(st.integers(0, 3)))
            for query in queries
        )
        simulated = tuple(draw(st.none() | WORDS) for _ in events)
        users.append(UserHistory(user, events, simulated, tuple(sorted(draw(stamp) for _ in events))))
    return DataSet(DataInfo("drawn", "hypothesis"), Catalogue(items), users)


@settings(max_examples=40, deadline=None)
@given(data_sets())
def test_any_data_set_survives_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, dataset: DataSet
) -> None:
    folder = tmp_path_factory.mktemp("round") / "data"
    dataset.save(folder)
    loaded = DataSet.load(folder)
    assert same(dataset, loaded)
    assert loaded.info == dataset.info


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    events = tuple(Event(row) for row in (3, 1, 2, 0))
    users = [UserHistory("u", events, (None,) * 4, (5, 5, 5, 5))]
    DataSet(DataInfo("ties", "test"), small_data_set().catalogue, users).save(tmp_path / "data")
    assert DataSet.load(tmp_path / "data").users[0].events == events


def test_rows_out_of_order_are_sorted_by_time_within_each_user(tmp_path: Path) -> None:
    dataset = small_data_set()
    dataset.save(tmp_path / "data")
    path = tmp_path / "data" / "interactions.parquet"
    pl.read_parquet(path).sort("user_id", "timestamp", descending=[False, True]).write_parquet(path)
    assert same(DataSet.load(tmp_path / "data"), dataset)


def test_the_optional_column_may_be_absent(tmp_path: Path) -> None:
    small_data_set().save(tmp_path / "data")
    path = tmp_path / "data" / "interactions.parquet"
    pl.read_parquet(path).drop("simulated_query").write_parquet(path)
    assert all(
        query is None for user in DataSet.load(tmp_path / "data").users for query in user.simulated_queries
    )


def spoil(column: str, row: int, value: object) -> pl.Expr:
    return pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value)).otherwise(pl.col(column)).alias(column)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.with_columns(spoil("item_id", 4, "i99")), "row 5: 'item_id' is not in items.jsonl"),
        (lambda f: f.with_columns(spoil("item_id", 4, None)), "row 5: 'item_id' is not in items.jsonl"),
        (lambda f: f.with_columns(spoil("behaviour", 2, "buy")), "row 3: 'behaviour' is not one of search"),
        (lambda f: f.with_columns(spoil("behaviour", 2, None)), "row 3: 'behaviour' is not one of search"),
        (lambda f: f.with_columns(spoil("query", 2, " ")), "row 3: a search without a query"),
        (lambda f: f.with_columns(pl.lit(None).alias("query")), "row 3: a search without.*and 3 more"),
        (lambda f: f.with_columns(spoil("user_id", 0, "")), "row 1: 'user_id' is empty"),
        (lambda f: f.with_columns(spoil("timestamp", 1, None)), "row 2: 'timestamp' is not a finite"),
        (lambda f: f.with_columns(spoil("timestamp", 1, float("nan"))), "row 2: 'timestamp' is not a finite"),
        (lambda f: f.with_columns(pl.col("timestamp").cast(pl.String)), "'timestamp' must hold numbers"),
        (lambda f: f.with_columns(pl.lit(7).alias("user_id")), "'user_id' must hold strings"),
        (lambda f: f.drop("item_id", "query"), r"missing column\(s\) item_id, query"),
        (lambda f: f.head(0), "holds no interaction"),
    ],
)
def test_wrong_interactions_are_refused_with_their_place(
    tmp_path: Path, change: object, message: str
) -> None:
    small_data_set().save(tmp_path / "data")
    path = tmp_path / "data" / "interactions.parquet"
    change(pl.read_parquet(path)).write_parquet(path)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        DataSet.load(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.jsonl", b'{"item_id": "a", "title": "A"}\n{"item_id"\n', "items.jsonl line 2"),
        ("items.jsonl", b'{"item_id": "a", "title": ""}\n', "line 1: item 'a': 'title'"),
        ("items.jsonl", b"[1]\n", "a JSON array, not JSON Lines"),
        ("items.jsonl", b"\xff\xfe\n", "UTF-16"),
        ("items.jsonl", b"", "empty"),
        ("items.jsonl", b'{"item_id": "a", "title": "A"}\n{"item_id": "a", "title": "B"}\n', "unique"),
        ("interactions.parquet", b"PAR1 but no more", "not a readable Parquet"),
        ("data.json", b"{", "data.json"),
        ("data.json", b'{"name": "x"}', "data.json"),
        ("data.json", b'{"name": "x", "source": "y", "format": 99}', "format 99"),
        ("data.json", None, "missing data.json"),
        ("items.jsonl", None, "missing items.jsonl"),
        ("interactions.parquet", None, "missing interactions.parquet"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    small_data_set().save(tmp_path / "data")
    path = tmp_path / "data" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        DataSet.load(tmp_path / "data")


def test_no_folder_and_no_interaction_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        DataSet.load(tmp_path / "nothing")
    with pytest.raises(DataError, match="no interaction"):
        DataSet(DataInfo("none", "test"), small_data_set().catalogue, [])


def test_only_a_data_set_is_replaced_and_only_by_force(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    small_data_set().save(folder)  # an empty folder may be filled
    with pytest.raises(DataError, match="--force"):
        small_data_set((4,)).save(folder)
    small_data_set((4,)).save(folder, force=True)
    assert DataSet.load(folder).info.counts["interactions"] == 4
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(DataError, match="not a data set"):
        small_data_set().save(thesis, force=True)
    with pytest.raises(DataError, match="is a file"):
        small_data_set().save(thesis / "chapter.txt", force=True)
    assert (thesis / "chapter.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "thesis"]


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    """A limit on the size of files makes the write fail midway, like a full disk."""
    folder = tmp_path / "data"
    small_data_set().save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = (
        "import resource; from training.data.dataset import *\n"
        f"data = DataSet.load({str(folder)!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        f"try: data.save({str(folder)!r}, force=True)\n"
        "except DataError as error: print('REFUSED', error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nothing was changed" in result.stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=6))
def test_leave_one_out_uses_each_event_once_and_never_leaks(lengths: list[int]) -> None:
    dataset = small_data_set(tuple(lengths))
    split = leave_one_out(dataset)
    assert len(split.train) == len(lengths)
    validation = {case.user_id: case for case in split.validation}
    test = {case.user_id: case for case in split.test}
    assert len(validation) == len(split.validation)
    assert len(test) == len(split.test)
    for user, train in zip(dataset.users, split.train, strict=True):
        if len(user.events) < 3:
            assert train == user.events
            assert user.user_id not in validation
            assert user.user_id not in test
            continue
        held, last = validation[user.user_id], test[user.user_id]
        assert held.history == train == user.events[:-2]
        assert (*train, user.events[-2]) == last.history
        assert (held.target, last.target) == (user.events[-2].item, user.events[-1].item)
        for case, event, simulated in (
            (held, user.events[-2], user.simulated_queries[-2]),
            (last, user.events[-1], user.simulated_queries[-1]),
        ):
            assert case.target == event.item
            assert case.query == (event.query if event.behaviour is Task.SEARCH else simulated)


def test_simulated_choices_are_fixed_for_all_time() -> None:
    """The choices are fixed here, so that no machine, version or edit changes the data of published figures."""
    beauty = Simulation("amazon-beauty")
    assert [beauty.is_search("1", position) for position in range(12)] == FIXED_BEHAVIOUR
    assert [Simulation("movielens").choose("query", 7, 1, film) for film in range(8)] == FIXED_QUERIES


FIXED_BEHAVIOUR = [False, True, False, True, True, False, True, True, True, True, False, True]
FIXED_QUERIES = [5, 6, 0, 0, 5, 1, 1, 4]


def test_simulated_behaviour_is_half_searches() -> None:
    simulation = Simulation("test")
    share = (
        sum(simulation.is_search(user, position) for user in range(400) for position in range(25)) / 10_000
    )
    assert 0.48 < share < 0.52
    with pytest.raises(ValueError, match="something to choose"):
        simulation.choose("query", 0, "about")


def test_describe_shows_figures_examples_and_the_simulation() -> None:
    console = Console(width=120, record=True)
    dataset = small_data_set()
    info = DataInfo("marked [red]", "test", {"query": "by [bold]hash[/bold]"}, {"bad rows": 3})
    describe(DataSet(info, dataset.catalogue, dataset.users), console)
    text = console.export_text()
    for words in (
        "marked [red]",
        "query: by [bold]hash[/bold]",
        "bad rows",
        "item 8 [i8]",
        "find 4",
        "4 (36.4%)",
    ):
        assert words in text
    assert quantiles([1, 2, 3, 4, 5]) == "min 1, 25% 2, median 3, 75% 4, 95% 5, max 5, mean 3.0"


def test_data_json_says_what_is_simulated(tmp_path: Path) -> None:
    dataset = small_data_set()
    info = DataInfo("sim", "test", {"behaviour": "by hash"})
    DataSet(info, dataset.catalogue, dataset.users).save(tmp_path / "data")
    record = json.loads((tmp_path / "data" / "data.json").read_text())
    assert record["simulation"] == {"behaviour": "by hash"}
    assert record["counts"]["interactions"] == 11
