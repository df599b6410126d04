"""Import: every format gives the same; whole columns are checked as single rows are; times and values as text."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.data_sets import same
from typer.testing import CliRunner

from index.sequence.events import Task
from training.cli.commands.data import data_app
from training.data.dataset import DataSet
from training.data.importing import tables
from training.data.importing.bad_rows import BadRowsError
from training.data.importing.importer import import_files
from training.data.importing.interactions import check_interaction
from training.data.importing.tables import RowError
from training.data.schema import DataError

ITEMS: list[dict[str, Any]] = [
    {"item_id": "a", "title": "A thing", "categories": ["x > y", "z"], "brand": 'Ä, "quoted"\nor not'},
    {"item_id": "b", "title": "B", "description": "long\ttext"},
]
EVENTS: list[dict[str, Any]] = [
    {"user_id": "u", "item_id": "a", "timestamp": 1_700_000_003, "behaviour": "search", "query": "a \"b\", c"},
    {"user_id": "v", "item_id": "b", "timestamp": 1_700_000_002, "behaviour": "recommendation"},
    {"user_id": "u", "item_id": "b", "timestamp": 1_700_000_001, "behaviour": "recommendation", "simulated_query": "w"},
]  # fmt: skip


def lines(path: Path, rows: list[Any]) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, "utf-8")
    return path


def cells(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(
            {name: "|".join(value) if isinstance(value, list) else value for name, value in row.items()}
            for row in rows
        )
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    return path


def packed(write: Callable[..., Path], codec: str) -> Callable[[Path, list[dict[str, Any]]], Path]:
    def written(path: Path, rows: list[dict[str, Any]]) -> Path:
        plain = write(path.with_suffix(".plain"), rows)
        with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), codec) as stream:
            stream.write(plain.read_bytes())
        return path

    return written


FORMATS: dict[str, Callable[..., Path]] = {
    "jsonl": lines,
    "csv": cells,
    "tsv": lambda path, rows: cells(path, rows, "\t"),
    "parquet": parquet,
    "jsonl.gz": packed(lines, "gzip"),
    "jsonl.zst": packed(lines, "zstd"),
    "csv.gz": packed(cells, "gzip"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same(tmp_path: Path, kind: str) -> None:
    expected, _ = import_files(
        lines(tmp_path / "i.jsonl", ITEMS), lines(tmp_path / "e.jsonl", EVENTS), "test"
    )
    write = FORMATS[kind]
    found, bad = import_files(
        write(tmp_path / f"items.{kind}", ITEMS), write(tmp_path / f"events.{kind}", EVENTS), "test"
    )
    assert bad == []
    assert same(found, expected)
    assert found.info.notes == expected.info.notes == ["time stamps are seconds since 1970"]
    assert [event.query for event in expected.users[0].events] == [None, 'a "b", c']


ANYTHING = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.lists(st.integers(), max_size=1)
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=3) | st.sampled_from(
    ["\x1f", "\u200b", " ", "\ud83d", "é"]
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "user_id": st.sampled_from(["u", "v", 5, "5"]) | TEXT | ANYTHING,
        "item_id": st.sampled_from(["a", "b"]) | TEXT | ANYTHING,
        "timestamp": st.integers(0, 9) | st.floats(0, 9) | st.sampled_from(["x", None, True, 2**64, 1e300, [1]]),
        "behaviour": st.sampled_from(["search", "recommendation"]) | TEXT | ANYTHING,
        "query": TEXT | ANYTHING,
        "simulated_query": TEXT | ANYTHING,
        "other": TEXT | ANYTHING,
    },
)  # fmt: skip
GOOD = st.sampled_from(EVENTS).map(lambda event: event | {"timestamp": event["timestamp"] % 10})


@settings(max_examples=150, deadline=None)
@given(
    st.lists(GOOD | ROWS | st.sampled_from(["", " ", "{", "[1]"]), max_size=12),
    st.sampled_from([40, 200, 10**6]),
)
def test_columns_are_checked_as_rows_are(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], block: int
) -> None:
    """Whatever the size of a table is, and whichever of its rows are in doubt."""
    rows = [EVENTS[0] | {"timestamp": 1}, *rows]
    folder = tmp_path_factory.mktemp("rows")
    items, events = lines(folder / "items.jsonl", ITEMS), folder / "events.jsonl"
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    events.write_bytes(text.encode("utf-8", "surrogatepass"))
    kept, reasons = [], {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            event = check_interaction(json.loads(line))
            if event["item_id"] not in ("a", "b"):
                raise RowError(f"item {event['item_id']!r} is not among the items")
            kept.append(event)
        except RowError as error:
            reasons[number] = str(error)
        except ValueError as error:
            reasons[number] = f"not JSON: {error}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK", block)
        found, bad = import_files(items, events, "test", skip_bad=True)
    assert {row.number: row.reason for row in bad} == reasons
    assert [row.number for row in bad] == sorted(reasons)
    order = list(dict.fromkeys(event["user_id"] for event in kept))
    expected = sorted(kept, key=lambda event: (order.index(event["user_id"]), event["timestamp"]))
    flat = [
        (user.user_id, "ab"[event.item], stamp, event.query, simulated)
        for user in found.users
        for event, stamp, simulated in zip(user.events, user.timestamps, user.simulated_queries, strict=True)
    ]
    names = ("user_id", "item_id", "timestamp", "query", "simulated_query")
    assert flat == [tuple(event[name] for name in names) for event in expected]


MOMENT = datetime(2024, 5, 1, 10, 0, 0, 250_000, tzinfo=UTC)
MICROSECONDS = int(MOMENT.timestamp()) * 10**6 + 250_000


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize(
    "text",
    [
        "2024-05-01T10:00:00.250Z",
        "2024-05-01 10:00:00.25",
        "2024-05-01T12:00:00.250+02:00",
        "2024-05-01T05:00:00.25-0500",
    ],
)
def test_dates_as_text_are_microseconds(tmp_path: Path, kind: str, text: str) -> None:
    events = [event | {"timestamp": text} for event in EVENTS[:2]] + [EVENTS[2] | {"timestamp": "2024-05-01"}]
    write = FORMATS[kind]
    found, _ = import_files(
        write(tmp_path / f"i.{kind}", ITEMS), write(tmp_path / f"e.{kind}", events), "test"
    )
    midnight = MICROSECONDS - 36_000_250_000
    assert [user.timestamps for user in found.users] == [(midnight, MICROSECONDS), (MICROSECONDS,)]
    assert found.info.notes == ["time stamps are dates, kept as microseconds since 1970"]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_dates_of_parquet_are_microseconds(tmp_path: Path, unit: Any) -> None:
    items = lines(tmp_path / "items.jsonl", ITEMS)
    frame = pl.DataFrame(EVENTS)
    for zone, moment in (("UTC", MOMENT), (None, MOMENT.replace(tzinfo=None))):
        stamps = pl.Series([moment + timedelta(days=k) for k in range(3)], dtype=pl.Datetime(unit, zone))
        frame.with_columns(timestamp=stamps).write_parquet(tmp_path / "e.parquet")
        found, _ = import_files(items, tmp_path / "e.parquet", "test")
        assert found.users[0].timestamps == (MICROSECONDS, MICROSECONDS + 2 * 86_400 * 10**6)


@pytest.mark.parametrize(
    ("number", "unit"), [(1_700_000_000, "seconds"), (1_700_000_000_123, "milliseconds"), (1.7e15, "microseconds"),
    (1_700_000_000_123_456_789, "nanoseconds"), (7, "no known unit")],
)  # fmt: skip
def test_the_unit_of_time_is_recognised_and_numbers_stay_exact(
    tmp_path: Path, number: float, unit: str
) -> None:
    events = [event | {"timestamp": number + k} for k, event in enumerate(EVENTS)]
    found, _ = import_files(lines(tmp_path / "i.jsonl", ITEMS), lines(tmp_path / "e.jsonl", events), "test")
    assert unit in found.info.notes[0]
    found.save(tmp_path / "data")
    assert DataSet.load(tmp_path / "data").users[0].timestamps == (number, number + 2)


def test_several_units_of_time_are_refused(tmp_path: Path) -> None:
    items = lines(tmp_path / "items.jsonl", ITEMS)
    for other in (1_700_000_000_000, "2024-05-01", 1.7e18):
        events = lines(tmp_path / "e.jsonl", [*EVENTS, EVENTS[0] | {"timestamp": other}])
        with pytest.raises(
            DataError, match=r"several units: seconds \(3, such as line 1\), .*\(1, such as line 4\)"
        ):
            import_files(items, events, "test", skip_bad=True)
    events = lines(
        tmp_path / "e.jsonl", [EVENTS[0] | {"timestamp": 2**53 + 1}, EVENTS[0] | {"timestamp": 2.5}]
    )
    with pytest.raises(DataError, match="beyond 2\\^53"):
        import_files(items, events, "test")


def test_values_that_are_text_are_said_and_converted_on_request(tmp_path: Path) -> None:
    attributes = [
        {"price": "80.78", "stock": "7", "new": "true", "code": "007", "size": "7", "sold": "1"},
        {"price": "5", "stock": "-2", "new": "False", "code": "12", "size": "XL", "sold": 2},
    ]
    items = lines(
        tmp_path / "items.jsonl", [item | more for item, more in zip(ITEMS, attributes, strict=True)]
    )
    events = lines(tmp_path / "events.jsonl", EVENTS)
    plain, _ = import_files(items, events, "test")
    assert [item.attributes["price"] for item in plain.catalogue] == ["80.78", "5"]
    said = " ".join(plain.info.notes)
    assert "'price' holds values as text, such as '80.78'" in said
    assert all(f"'{name}'" in said for name in ("price", "stock", "new", "sold"))
    assert not any(f"'{name}'" in said for name in ("code", "size", "brand"))
    inferred, _ = import_files(items, events, "test", infer=True)
    first, second = (dict(item.attributes) for item in inferred.catalogue)
    assert (first["price"], first["stock"], first["new"], first["code"], first["size"]) == (
        80.78,
        7,
        True,
        "007",
        "7",
    )
    assert (second["price"], second["stock"], second["new"], second["sold"]) == (5, -2, False, 2)
    assert isinstance(second["new"], bool)


def test_repeated_events_are_said_and_left_out_on_request(tmp_path: Path) -> None:
    items = lines(tmp_path / "items.jsonl", ITEMS)
    almost = [
        EVENTS[0] | {"query": "other"},
        EVENTS[0] | {"user_id": "w"},
        EVENTS[1] | {"timestamp": 1_700_000_009},
    ]
    once, twice = (
        lines(tmp_path / "once.jsonl", EVENTS + almost),
        lines(tmp_path / "twice.jsonl", (EVENTS + almost) * 2),
    )
    expected, _ = import_files(items, once, "test")
    assert not any("repeat" in note for note in expected.info.notes)
    kept, _ = import_files(items, twice, "test")
    assert kept.info.counts["interactions"] == 12
    assert any(note.startswith("6 interactions repeat an earlier one") for note in kept.info.notes)
    without, _ = import_files(items, twice, "test", deduplicate=True)
    assert same(without, expected)
    assert without.info.left_out == {"repeated interactions": 6}


def test_a_packed_file_that_ends_early_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    items = lines(tmp_path / "items.jsonl", ITEMS)
    events = tmp_path / "events.jsonl.gz"
    events.write_bytes(
        gzip.compress("".join(json.dumps(e | {"n": k}) + "\n" for k in range(5000) for e in EVENTS).encode())[
            :-50
        ]
    )
    arguments = [
        "import",
        "--items",
        str(items),
        "--interactions",
        str(events),
        "--out",
        str(tmp_path / "out"),
    ]
    refused = CliRunner().invoke(data_app, [*arguments, "--skip-bad"])
    assert isinstance(refused.exception, DataError)
    assert "was not copied to its end" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    events.write_text("no gzip")
    with pytest.raises(DataError, match="holds text, not gzip data"):
        import_files(items, events, "test")


def test_a_wrong_type_late_in_a_file_is_named_by_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BLOCK", 1000)
    items = lines(tmp_path / "items.jsonl", ITEMS)
    rows: list[Any] = [EVENTS[k % 3] | {"timestamp": 1_700_000_000 + k} for k in range(900)]
    rows[877] = rows[877] | {"timestamp": "noon"}
    rows[878] = rows[878] | {"user_id": 4.5}
    with pytest.raises(BadRowsError) as caught:
        import_files(items, lines(tmp_path / "e.jsonl", rows), "test")
    assert [row.number for row in caught.value.rows] == [878, 879]
    frame = pl.DataFrame(EVENTS).with_columns(timestamp=pl.Series(["a", "b", "c"]))
    frame.write_parquet(tmp_path / "e.parquet")
    with pytest.raises(BadRowsError) as caught:
        import_files(items, tmp_path / "e.parquet", "test")
    assert [row.number for row in caught.value.rows] == [1, 2, 3]


def test_rows_of_csv_files_are_named_by_their_lines(tmp_path: Path) -> None:
    items = cells(tmp_path / "items.csv", ITEMS)  # the first item has a line break
    events = tmp_path / "events.csv"
    head = "user_id,item_id,timestamp,behaviour,query\n"
    events.write_text(
        head
        + 'u,a,1,search,x\n\nu,a,1\nu,zzz,1,recommendation,\n,a,1,recommendation,\nu,b,2,search,"y\nz"\nu,b,3,search,\n'
    )
    found, bad = import_files(items, events, "test", skip_bad=True)
    assert [row.number for row in bad] == [4, 5, 6, 9]
    assert "3 cells, the header has 5" in bad[0].reason
    assert [event.query for event in found.users[0].events] == ["x", "y\nz"]
    (tmp_path / "bad.csv").write_text("user;item\n1;2\n")
    with pytest.raises(DataError, match=r"missing column\(s\) user_id.*found user, item"):
        import_files(items, tmp_path / "bad.csv", "test")
    (tmp_path / "really.jsonl").write_text(head + "u,a,1,search,x\n")
    with pytest.raises(DataError, match=r"holds CSV.*end in \.csv"):
        import_files(items, tmp_path / "really.jsonl", "test")


def test_a_search_in_a_large_log_is_a_search(tmp_path: Path) -> None:
    """Several tables, people in the order of their first rows, and categories of texts across tables."""
    items = lines(tmp_path / "items.jsonl", ITEMS)
    rows = [
        {"user_id": f"u{k % 700}", "item_id": "ab"[k % 2], "timestamp": 9_000_000 - k,
         "behaviour": ("search", "recommendation")[k % 3 == 0], "query": f"q{k % 50}"}
        for k in range(5000)
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK", 10_000)
        patch.setattr(tables, "ROWS", 300)
        found = [
            import_files(items, FORMATS[kind](tmp_path / f"e.{kind}", rows), "test")[0]
            for kind in ("jsonl", "csv", "parquet")
        ]
    assert [user.user_id for user in found[0].users] == [f"u{k}" for k in range(700)]
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    for user in found[0].users[:50]:
        own = [row for row in reversed(rows) if row["user_id"] == user.user_id]
        assert [(e.item, e.behaviour, e.query) for e in user.events] == [
            (
                "ab".index(row["item_id"]),
                Task(row["behaviour"]),
                row["query"] if row["behaviour"] == "search" else None,
            )
            for row in own
        ]
