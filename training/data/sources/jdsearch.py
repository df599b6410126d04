"""JDsearch (Liu et al. 2023, SIGIR): product searches with whole histories, as text with tabs.

`user_behavior_data.txt` (`release_data.txt` in the first release) has a line for each person: a last query with its
candidates and labels, and lists of what came before, joined by "_". `product_meta_data.txt` (`product_data.txt`) has
the products. The terms of texts are numbers, joined by the character \\x18 (see `word_numbers`). People have no ids,
and times are intervals.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from index.sequence.events import Task
from training.data.dataset import DataSet
from training.data.importing.files import opened
from training.data.schema import DataError
from training.data.sources.filters import Filters, JDsearchSignal
from training.data.sources.log import Log, Part, data_set_of
from training.data.sources.log_files import Column, as_label, as_path, scan_text, text_file
from training.data.sources.word_numbers import NOTE, words_of_numbers

NAME = "jdsearch"
LEVELS: dict[JDsearchSignal, int] = {"click": 1, "cart": 2, "purchase": 3}
LEVEL_OF_TYPE = {"CLICK": 1, "FLW": 1, "CART": 2, "ORD": 3}
NO_QUERY = "-1"
PEOPLE = (
    "query", "candidate_wid_list", "candidate_label_list", "history_qry_list", "history_wid_list", "history_type_list",
    "history_time_list",
)  # fmt: skip
CATEGORIES = tuple(f"cate_name_{level}" for level in range(1, 5))
PRODUCTS = (
    "wid", "name", "brand_id", "brand_name",
    *(f"cate_{what}_{level}" for level in range(1, 5) for what in ("id", "name")),
    "shop_id",
)  # fmt: skip
TIME = {
    "timestamp": "the sum of the person's intervals: the source has no dates, so people have no order in time"
}
UNIT = "intervals since the first event of each person"


def jdsearch(source: Path, filters: Filters, signal: JDsearchSignal = "click") -> DataSet:
    """Read the files. signal: the least that counts as a choice; to follow a product counts as a click.

    The last query of a person gives an event for each candidate that was chosen, the strongest choice last.
    Raises `DataError` for a missing file or column, lists of other lengths, and unknown types and labels.
    """
    people = text_file(source, "user_behavior_data.txt", "release_data.txt", "release_data_sample.txt")
    products = text_file(source, "product_meta_data.txt", "product_data.txt", "product_data_sample.txt")
    texts = _scan(products, PRODUCTS).with_columns(
        words_of_numbers(pl.col(name)) for name in ("name", "brand_name", *CATEGORIES)
    )
    items = texts.select(
        pl.col("wid").alias("item_id"),
        pl.col("name").alias("title"),
        as_path(CATEGORIES),
        pl.col("brand_name").alias("brand"),
        as_label("brand_id"),
        as_label("shop_id"),
    )
    rows, least = _people(people), LEVELS[signal]
    parts = [
        Part(str(people), _history(rows, least), None, "history_time_list", "history_qry_list"),
        Part(str(people), _last_search(rows, least), Task.SEARCH, "history_time_list"),
    ]
    how = f"JDsearch; a product was chosen by {signal} or more"
    return data_set_of(Log(NAME, how, items, f"{products}: name", parts, UNIT, TIME, [NOTE]), filters)


def _scan(path: Path, names: Sequence[str]) -> pl.LazyFrame:
    """Open a file with tabs, whose first line may be a header or not, as text. Raises `DataError`."""
    with opened(path) as file:
        first = io.TextIOWrapper(file, "utf-8-sig", errors="replace").readline()
    headed = first.strip("\n").split("\t")[0] == names[0]
    columns = dict.fromkeys(names, Column.TEXT)
    return scan_text(path, columns, separator="\t", quoted=False, names=None if headed else names)


def _people(path: Path) -> pl.LazyFrame:
    """Return a row for each person: `user_id` (the number of the row, from 1), lists of texts, and `times`, float64.

    times: list, of each event of the history and of the last query.
    """
    cells = _scan(path, PEOPLE).with_row_index("user_id", 1)
    lists = cells.with_columns(
        pl.col("user_id").cast(pl.String),
        *(pl.col(name).str.split("_").fill_null([]) for name in PEOPLE[1:]),
    )
    intervals = pl.col("history_time_list").list.eval(pl.element().cast(pl.Float64, strict=False))
    people = lists.with_columns(intervals.list.eval(pl.element().cum_sum()).alias("times"))
    _check(path, people.with_columns(intervals.alias("intervals")))
    return people


def _check(path: Path, people: pl.LazyFrame) -> None:
    """Raise `DataError` for the first person whose lists do not fit or hold unknown values."""
    lengths = {name: pl.col(name).list.len() for name in PEOPLE[1:]}
    past = lengths["history_wid_list"]
    fit = (lengths["history_qry_list"] == past) & (lengths["history_type_list"] == past)
    types = pl.col("history_type_list").list.eval(pl.element().is_in(list(LEVEL_OF_TYPE))).list.all()
    labels = pl.col("candidate_label_list").list.eval(
        pl.element().cast(pl.Float64, strict=False).is_between(0, max(LEVELS.values())).fill_null(False)
    )
    wrong = {
        "history_qry_list, history_wid_list and history_type_list must be of one length": ~fit,
        "history_time_list must have one entry more than history_wid_list": lengths["history_time_list"]
        != past + 1,
        "candidate_label_list must be as long as candidate_wid_list": lengths["candidate_wid_list"]
        != lengths["candidate_label_list"],
        "history_time_list must hold numbers": pl.col("intervals")
        .list.eval(pl.element().is_null())
        .list.any(),
        f"history_type_list must hold {', '.join(LEVEL_OF_TYPE)}": ~types,
        "candidate_label_list must hold 0 (none), 1 (click), 2 (cart) or 3 (purchase)": ~labels.list.all(),
    }
    person = pl.col("user_id").cast(pl.Int64)
    found = people.select(
        person.filter(each.fill_null(False)).min().alias(reason) for reason, each in wrong.items()
    ).collect(engine="streaming")
    for reason, row in found.row(0, named=True).items():
        if row is not None:
            raise DataError(f"{path} row {row}: {reason}")


def _history(people: pl.LazyFrame, least: int) -> pl.LazyFrame:
    lists = ["history_qry_list", "history_wid_list", "history_type_list"]
    past = people.with_columns(pl.col("times").list.head(pl.col("history_wid_list").list.len()))
    rows = past.select("user_id", *lists, "times").explode(*lists, "times").drop_nulls("history_wid_list")
    asked = pl.col("history_qry_list")
    level = pl.col("history_type_list").replace_strict(LEVEL_OF_TYPE, default=0, return_dtype=pl.Int64)
    return rows.select(
        "user_id",
        pl.col("history_wid_list").alias("item_id"),
        pl.col("times").alias("timestamp"),
        pl.when(asked != NO_QUERY).then(words_of_numbers(asked)).alias("query"),
        (level >= least).alias("chosen"),
    )


def _last_search(people: pl.LazyFrame, least: int) -> pl.LazyFrame:
    lists = ["candidate_wid_list", "candidate_label_list"]
    rows = people.select("user_id", "query", pl.col("times").list.last(), *lists).explode(*lists)
    label = pl.col("candidate_label_list").cast(pl.Float64)
    # At one moment the stronger choice comes later. Left in the order of the file, the last event would be arbitrary.
    ordered = rows.drop_nulls("candidate_wid_list").sort(label, maintain_order=True)
    return ordered.select(
        "user_id",
        pl.col("candidate_wid_list").alias("item_id"),
        pl.col("times").alias("timestamp"),
        words_of_numbers(pl.col("query")).alias("query"),
        (label >= least).alias("chosen"),
    )
