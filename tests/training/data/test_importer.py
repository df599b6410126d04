"""Import: every bad row is reported once with its line and reason, and JSON Lines equals Parquet."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_sets import same
from typer.testing import CliRunner

from index.sequence.events import Task
from training.cli.commands.data import data_app
from training.data.dataset import DataSet
from training.data.importing.bad_rows import SHOWN, BadRowsError
from training.data.importing.importer import import_files
from training.data.schema import DataError

ITEM: dict[str, object] = {"item_id": "a", "title": "A thing", "categories": ["x"], "price": 3.5}
EVENT: dict[str, object] = {"user_id": "u", "item_id": "a", "timestamp": 1, "behaviour": "recommendation"}
SEARCH = EVENT | {"behaviour": "search", "query": "thing"}

# The fault of a row, the row's line, and a part of the reason that must be reported.
BAD_LINES = [
    (b"{", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"title": "\xff"}', "not UTF-8"),
    (b"[1, 2]", "not a JSON object"),
    (b'"text"', "not a JSON object"),
    (b"null", "not a JSON object"),
    (b"{}", "missing"),
]
BAD_ITEMS = [
    *BAD_LINES,
    (ITEM | {"item_id": "0"}, "is already that of line 1"),
    (ITEM | {"item_id": 0}, "is already that of line 1"),
    (ITEM | {"item_id": None}, "'item_id' is missing"),
    (ITEM | {"item_id": ""}, "'item_id'"),
    (ITEM | {"item_id": True}, "'item_id'"),
    (ITEM | {"item_id": 1.5}, "'item_id'"),
    (ITEM | {"title": None}, "'title' is missing"),
    (ITEM | {"title": "  "}, "'title'"),
    (ITEM | {"title": 7}, "'title'"),
    ({"item_id": "z"}, "missing 'title'"),
    (ITEM | {"item_id": "z", "description": 7}, "'description'"),
    (ITEM | {"item_id": "z", "categories": "x"}, "'categories'"),
    (ITEM | {"item_id": "z", "categories": [1]}, "'categories'"),
    (ITEM | {"item_id": "z", "price": math.nan}, "attribute 'price'"),
    (ITEM | {"item_id": "z", "maker": {"name": "b"}}, "attribute 'maker'"),
    (ITEM | {"item_id": "z", "sizes": [1, "b"]}, "attribute 'sizes'"),
    (ITEM | {"item_id": "z", "title": "half \ud83d"}, "not valid Unicode"),
    (ITEM | {"item_id": "z", "tags": ["half \ud83d"]}, "not valid Unicode"),
]
BAD_EVENTS = [
    *BAD_LINES,
    ({"user_id": "u", "timestamp": 1}, "missing 'item_id', 'behaviour'"),
    (EVENT | {"item_id": "nothing"}, "item 'nothing' is not among the items"),
    (EVENT | {"item_id": None}, "'item_id'"),
    (EVENT | {"user_id": None}, "'user_id'"),
    (EVENT | {"user_id": ""}, "'user_id'"),
    (EVENT | {"user_id": False}, "'user_id'"),
    (EVENT | {"user_id": ["u"]}, "'user_id'"),
    (EVENT | {"user_id": "\udc00"}, "not valid Unicode"),
    (EVENT | {"timestamp": "yesterday"}, "'timestamp' must be a number"),
    (EVENT | {"timestamp": "20240101"}, "'timestamp' must be a number"),
    (EVENT | {"timestamp": "2024-13-01"}, "'timestamp' must be a number"),
    (EVENT | {"timestamp": None}, "'timestamp' must be a number"),
    (EVENT | {"timestamp": True}, "'timestamp' must be a number"),
    (EVENT | {"timestamp": math.nan}, "'timestamp' must be a finite"),
    (EVENT | {"timestamp": math.inf}, "'timestamp' must be a finite"),
    (EVENT | {"timestamp": 10**30}, "'timestamp' must be a finite"),
    (EVENT | {"behaviour": "buy"}, "'behaviour' must be search or recommendation"),
    (EVENT | {"behaviour": None}, "'behaviour'"),
    (EVENT | {"behaviour": ["search"]}, "'behaviour'"),
    (SEARCH | {"query": None}, "a search needs a 'query'"),
    (SEARCH | {"query": "   "}, "a search needs a 'query'"),
    (SEARCH | {"query": 7}, "a search needs a 'query'"),
    (SEARCH | {"query": "\ud83d"}, "not valid Unicode"),
    (EVENT | {"behaviour": "search"}, "a search needs a 'query'"),
    (EVENT | {"simulated_query": 7}, "'simulated_query'"),
]


def as_line(row: object) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row).encode()


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_bytes(b"".join(as_line(row) + b"\n" for row in rows))
    return path


@pytest.mark.parametrize(("row", "reason"), BAD_ITEMS, ids=range(len(BAD_ITEMS)))
def test_a_bad_item_is_named(tmp_path: Path, row: object, reason: str) -> None:
    items = write_lines(tmp_path / "items.jsonl", [ITEM | {"item_id": "0"}, row])
    events = write_lines(tmp_path / "interactions.jsonl", [EVENT | {"item_id": "0"}])
    with pytest.raises(BadRowsError) as caught:
        import_files(items, events, "test")
    assert [(bad.file, bad.number) for bad in caught.value.rows] == [(items, 2)]
    assert reason in caught.value.rows[0].reason
    assert f"{items} line 2: " in str(caught.value)


@pytest.mark.parametrize(("row", "reason"), BAD_EVENTS, ids=range(len(BAD_EVENTS)))
def test_a_bad_interaction_is_named(tmp_path: Path, row: object, reason: str) -> None:
    items = write_lines(tmp_path / "items.jsonl", [ITEM])
    events = write_lines(tmp_path / "interactions.jsonl", [EVENT, row, SEARCH])
    with pytest.raises(BadRowsError) as caught:
        import_files(items, events, "test")
    assert [(bad.file, bad.number) for bad in caught.value.rows] == [(events, 2)]
    assert reason in caught.value.rows[0].reason
    dataset, bad = import_files(items, events, "test", skip_bad=True)
    assert bad == caught.value.rows
    assert dataset.info.counts["interactions"] == 2


@st.composite
def files(draw: st.DrawFn) -> tuple[list[object], list[int], list[object], list[int]]:
    """Draw rows of both files with the line numbers of the bad ones; item "0" in line 1 is always good."""
    items: list[object] = [ITEM | {"item_id": "0"}]
    bad_items: list[int] = []
    for number in range(2, draw(st.integers(2, 9))):
        wrong = draw(st.none() | st.sampled_from([row for row, _ in BAD_ITEMS]))
        items.append(ITEM | {"item_id": f"good {number}"} if wrong is None else wrong)
        bad_items += [] if wrong is None else [number]
    events: list[object] = [EVENT | {"item_id": "0"}]
    bad_events: list[int] = []
    for number in range(2, draw(st.integers(2, 9))):
        wrong = draw(st.none() | st.sampled_from([row for row, _ in BAD_EVENTS]))
        events.append(SEARCH | {"item_id": "0", "timestamp": number} if wrong is None else wrong)
        bad_events += [] if wrong is None else [number]
    return items, bad_items, events, bad_events


@settings(max_examples=60, deadline=None)
@given(files())
def test_every_bad_row_is_reported_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[list[object], list[int], list[object], list[int]],
) -> None:
    items, bad_items, events, bad_events = drawn
    folder = tmp_path_factory.mktemp("import")
    item_file = write_lines(folder / "items.jsonl", items)
    event_file = write_lines(folder / "interactions.jsonl", events)
    expected = [(item_file, number) for number in bad_items] + [(event_file, number) for number in bad_events]
    dataset, bad = import_files(item_file, event_file, "test", skip_bad=True)
    assert [(row.file, row.number) for row in bad] == expected
    assert len(dataset.catalogue) == len(items) - len(bad_items)
    assert dataset.info.counts["interactions"] == len(events) - len(bad_events)
    assert sum(dataset.info.left_out.values()) == len(expected)
    dataset.save(folder / "data")
    assert same(DataSet.load(folder / "data"), dataset)
    if expected:
        with pytest.raises(BadRowsError) as caught:
            import_files(item_file, event_file, "test")
        assert caught.value.rows == bad


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
ITEM_ROWS = st.fixed_dictionaries(
    {
        "item_id": st.none() | st.sampled_from("abcdef"),
        "title": st.none() | TEXT,
        "categories": st.none() | st.lists(TEXT, max_size=2),
        "price": st.none() | st.floats(0, 100),
        "stock": st.none() | st.integers(0, 9),
    }
)
EVENT_ROWS = st.fixed_dictionaries(
    {
        "user_id": st.none() | st.sampled_from(["u", "v", ""]),
        "item_id": st.none() | st.sampled_from("abcdefg"),
        "timestamp": st.none() | st.floats(0, 10) | st.just(math.nan),
        "behaviour": st.sampled_from(["search", "recommendation", "buy", None]),
        "query": st.none() | TEXT,
        "simulated_query": st.none() | TEXT,
    }
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ITEM_ROWS, max_size=8), st.lists(EVENT_ROWS, max_size=12))
def test_json_lines_and_parquet_give_the_same(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, object]], events: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.mktemp("both")
    items = [{"item_id": "a", "title": "first", "categories": ["c"], "price": 1.0, "stock": 1}, *items]
    events = [EVENT | {"timestamp": 0.0, "query": "ignored", "simulated_query": "want"}, *events]
    for name, rows in (("items", items), ("interactions", events)):
        write_lines(folder / f"{name}.jsonl", list(rows))
        pl.DataFrame(rows).write_parquet(folder / f"{name}.parquet")
    results = [
        import_files(folder / f"items.{kind}", folder / f"interactions.{kind}", "test", skip_bad=True)
        for kind in ("jsonl", "parquet")
    ]
    (lines, bad_lines), (parquet, bad_parquet) = results
    assert same(lines, parquet)
    reasons = [
        [(row.file.stem, row.number, row.reason.replace("that of row", "that of line")) for row in bad]
        for bad in (bad_lines, bad_parquet)
    ]
    assert reasons[0] == reasons[1]
    assert lines.info.left_out == parquet.info.left_out


def test_good_files_become_a_data_set(tmp_path: Path) -> None:
    rows: list[object] = [
        b"\xef\xbb\xbf" + as_line({"item_id": 7, "title": " Seven ", "year": 1995}),
        b"",
        ITEM,
    ]
    items = write_lines(tmp_path / "items.jsonl", rows)
    events = write_lines(
        tmp_path / "events.ndjson",
        [
            SEARCH | {"user_id": 5, "item_id": 7, "timestamp": 9, "device": "phone"},
            EVENT | {"user_id": 5, "timestamp": 8.5, "query": "ignored", "simulated_query": "a"},
        ],
    )
    dataset, bad = import_files(items, events, "mine")
    assert bad == []
    assert [item.item_id for item in dataset.catalogue] == ["7", "a"]
    assert dataset.catalogue[0].title == "Seven"
    assert dataset.catalogue[0].attributes == {"year": 1995}
    (user,) = dataset.users
    assert user.user_id == "5"
    assert [(e.item, e.behaviour, e.query) for e in user.events] == [
        (1, Task.RECOMMENDATION, None),
        (0, Task.SEARCH, "thing"),
    ]
    assert user.simulated_queries == ("a", None)
    assert dataset.info.simulation == {}


def test_files_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    items = write_lines(tmp_path / "items.jsonl", [ITEM])
    events = write_lines(tmp_path / "interactions.jsonl", [EVENT])
    with pytest.raises(DataError, match="there is no file"):
        import_files(tmp_path / "none.jsonl", events, "test")
    (tmp_path / "items.csv").write_text("item_id,title\n")
    with pytest.raises(DataError, match=r"no usable row in .*items\.csv"):
        import_files(tmp_path / "items.csv", events, "test")
    (tmp_path / "items.txt").write_text("item_id,title\n")
    with pytest.raises(DataError, match=r"must end in \.jsonl"):
        import_files(tmp_path / "items.txt", events, "test")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a readable Parquet"):
        import_files(items, tmp_path / "broken.parquet", "test")
    pl.DataFrame({"user_id": ["u"], "item_id": ["a"]}).write_parquet(tmp_path / "short.parquet")
    with pytest.raises(DataError, match=r"missing column\(s\) timestamp, behaviour"):
        import_files(items, tmp_path / "short.parquet", "test", skip_bad=True)
    (tmp_path / "empty.jsonl").write_bytes(b"\n")
    with pytest.raises(DataError, match="no usable row"):
        import_files(items, tmp_path / "empty.jsonl", "test", skip_bad=True)


def test_many_rows_with_one_fault_are_summed_up_and_a_file_has_all(tmp_path: Path) -> None:
    items = write_lines(tmp_path / "items.jsonl", [ITEM])
    rows = [EVENT | {"item_id": f"gone {k}"} for k in range(3000)] + [EVENT | {"timestamp": "now"}, EVENT]
    events = write_lines(tmp_path / "interactions.jsonl", rows)
    arguments = [
        "import",
        "--items",
        str(items),
        "--interactions",
        str(events),
        "--out",
        str(tmp_path / "out"),
    ]
    listed = tmp_path / "bad.txt"
    refused = CliRunner().invoke(data_app, [*arguments, "--bad-rows", str(listed)])
    assert isinstance(refused.exception, BadRowsError)
    said = str(refused.exception).splitlines()
    assert len(said) == SHOWN + 3
    assert said[0] == f"{events} line 1: item 'gone 0' is not among the items"
    assert "'timestamp'" in said[SHOWN]
    assert said[-2] == f"{events}: {3000 - SHOWN:,} more rows like these: item … is not among the items"
    assert said[-1].startswith("3,001 bad row(s)")
    assert listed.read_text().splitlines() == [str(row) for row in refused.exception.rows]
    listed.unlink()
    kept = CliRunner().invoke(data_app, [*arguments, "--bad-rows", str(listed), "--skip-bad"])
    assert kept.exit_code == 0
    assert len(kept.output.splitlines()) < SHOWN + 10
    assert len(listed.read_text().splitlines()) == 3001


def test_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    items = write_lines(tmp_path / "items.jsonl", [ITEM, {"item_id": "b"}])
    events = write_lines(tmp_path / "interactions.jsonl", [EVENT, SEARCH, EVENT | {"item_id": "b"}])
    arguments = ["import", "--items", str(items), "--interactions", str(events), "--out", str(out)]
    refused = CliRunner().invoke(data_app, arguments)
    assert isinstance(refused.exception, BadRowsError)
    assert not out.exists()
    kept = CliRunner().invoke(data_app, [*arguments, "--skip-bad"])
    assert kept.exit_code == 0
    assert f"{items} line 2: " in kept.output
    assert f"{events} line 3: " not in kept.output  # its item was refused, and is blamed once
    assert "1 bad row(s) skipped" in kept.output
    assert DataSet.load(out).info.left_out == {"bad item rows": 1, "interactions with bad items": 1}
    again = CliRunner().invoke(data_app, [*arguments, "--skip-bad"])
    assert isinstance(again.exception, DataError)
    assert CliRunner().invoke(data_app, [*arguments, "--skip-bad", "--force"]).exit_code == 0
    shown = CliRunner().invoke(data_app, ["describe", str(out)])
    assert shown.exit_code == 0
    assert "Nothing in this data set is marked as simulated" in shown.output
    assert isinstance(CliRunner().invoke(data_app, ["describe", str(items)]).exception, DataError)
