"""Qilin (Chen et al. 2025, arXiv 2503.00501): searches and recommendations of notes, in Chinese, as Parquet.

Tables, each a folder of Parquet files as published, or one file: `notes`, `search_train`, `search_test`,
`recommendation_train`, `recommendation_test`. What was shown stands in lists of structs, with the time stamp inside.
`user_feat`, images and the notes clicked before a request, which have no time, are not read.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from index.sequence.events import Task
from training.data.dataset import DataSet
from training.data.importing.plain_items import VISIBLE
from training.data.sources.filters import Filters, QilinSignal
from training.data.sources.log import Log, Part, data_set_of
from training.data.sources.log_files import Column, as_label, parquet_files, scan_details, scan_tables

NAME = "qilin"
NOTES = {"note_idx": Column.ID, "note_title": Column.TEXT, "note_content": Column.TEXT}
LABELS = ("note_type", "taxonomy1_id", "taxonomy2_id", "taxonomy3_id")
TITLE_OF_CONTENT = 100  # characters, of a note without a title
# what is logged of a search and of a recommendation: tables, list of structs, time stamp in it
TABLES = {
    Task.SEARCH: ("search", "search_result_details_with_idx", "search_timestamp"),
    Task.RECOMMENDATION: ("recommendation", "rec_result_details_with_idx", "request_timestamp"),
}


def qilin(source: Path, filters: Filters, signal: QilinSignal = "click") -> DataSet:
    """Read the tables. signal: the field of a result that is above 0 where the person chose it; NaN and -1 are not.

    Raises `DataError` for a missing table, file or column, and one of another type.
    """
    notes = scan_tables(parquet_files(source, "notes"), NOTES, dict.fromkeys(LABELS, Column.ID))
    content = pl.col("note_content").str.strip_chars()
    opening = content.str.split("\n").list.first().str.slice(0, TITLE_OF_CONTENT)
    titled = pl.col("note_title").str.contains(VISIBLE).fill_null(False)
    items = notes.select(
        pl.col("note_idx").alias("item_id"),
        pl.when(titled).then(pl.col("note_title")).otherwise(opening).alias("title"),
        content.alias("description"),
        *map(as_label, LABELS),
    )
    parts = [_part(source, task, split, signal) for task in TABLES for split in ("train", "test")]
    how = f"Qilin; a note was chosen if its {signal} is above 0"
    return data_set_of(Log(NAME, how, items, f"{source / 'notes'}: note_title", parts), filters)


def _part(source: Path, task: Task, split: str, signal: str) -> Part:
    table, details, time = TABLES[task]
    columns = {"user_idx": Column.ID} | ({"query": Column.TEXT} if task is Task.SEARCH else {})
    fields = {"note_idx": Column.ID, signal: Column.NUMBER, time: Column.NUMBER}
    rows = scan_details(parquet_files(source, f"{table}_{split}"), columns, details, fields)
    events = rows.select(
        pl.col("user_idx").alias("user_id"),
        pl.col("note_idx").alias("item_id"),
        pl.col(time).alias("timestamp"),
        (pl.col("query") if task is Task.SEARCH else pl.lit(None, pl.String)).alias("query"),
        ((pl.col(signal) > 0) & pl.col(signal).is_not_nan()).alias("chosen"),  # NaN is above all in polars
    )
    return Part(str(source / f"{table}_{split}"), events, task, f"{details}.{time}")
