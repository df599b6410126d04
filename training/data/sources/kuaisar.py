"""KuaiSAR (Sun et al. 2023, arXiv 2306.07705): searches and recommendations of short videos, as CSV.

`rec_inter.csv`, `src_inter.csv` and `item_features.csv`, packed or not. Captions and keywords are lists of numbers in
place of words (see `word_numbers`); categories have names. `social_network.csv` and `user_features.csv` are not read.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from index.sequence.events import Task
from training.data.dataset import DataSet
from training.data.sources.filters import Filters, KuaiSARSignal
from training.data.sources.log import Log, Part, data_set_of
from training.data.sources.log_files import Column, as_label, as_path, scan_text, text_file
from training.data.sources.word_numbers import NOTE, words_of_numbers

NAME = "kuaisar"
LEVELS = tuple(f"{level}_level_category_name_en" for level in ("first", "second", "third", "fourth"))
EMPTY = ("empty", "空", "UNKNOWN")  # names of the level below the last
ITEMS = {
    "item_id": Column.ID, "caption": Column.WORD_NUMBERS, "author_id": Column.ID, "item_type": Column.TEXT,
} | dict.fromkeys(LEVELS, Column.TEXT)  # fmt: skip
SEARCHES = {
    "user_id": Column.ID, "item_id": Column.ID, "search_session_timestamp": Column.NUMBER,
    "keyword": Column.WORD_NUMBERS, "click_cnt": Column.NUMBER,
}  # fmt: skip
RECOMMENDATIONS = {"user_id": Column.ID, "item_id": Column.ID, "timestamp": Column.NUMBER}


def kuaisar(source: Path, filters: Filters, signal: KuaiSARSignal = "click") -> DataSet:
    """Read the files. signal: what chooses a recommended video; a found one is chosen by `click_cnt`.

    Raises `DataError` for a missing file or column, and cells that are no such value.
    """
    features, searches, shown = (
        text_file(source, name) for name in ("item_features.csv", "src_inter.csv", "rec_inter.csv")
    )
    path = as_path(LEVELS, *EMPTY)
    items = scan_text(features, ITEMS).select(
        "item_id",
        pl.coalesce(words_of_numbers(pl.col("caption")), path.list.first()).alias("title"),
        path,
        as_label("author_id"),
        as_label("item_type"),
    )
    found = scan_text(searches, SEARCHES).select(
        "user_id",
        "item_id",
        pl.col("search_session_timestamp").alias("timestamp"),
        words_of_numbers(pl.col("keyword")).alias("query"),
        (pl.col("click_cnt") > 0).alias("chosen"),
    )
    watched = scan_text(shown, RECOMMENDATIONS | {signal: Column.NUMBER}).select(
        "user_id",
        "item_id",
        "timestamp",
        pl.lit(None, pl.String).alias("query"),
        (pl.col(signal) > 0).alias("chosen"),
    )
    parts = [
        Part(str(searches), found, Task.SEARCH, "search_session_timestamp", "keyword"),
        Part(str(shown), watched, Task.RECOMMENDATION),
    ]
    how = (
        f"KuaiSAR; a found video was chosen if its click_cnt is above 0, a recommended one if its {signal} is"
    )
    return data_set_of(Log(NAME, how, items, f"{features}: caption", parts, notes=[NOTE]), filters)
