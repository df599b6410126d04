"""MovieLens with tags (GroupLens, `ml-latest` and its like): `ratings.csv`, `tags.csv` and `movies.csv`.

A rating is a recommendation; a tag that a person gave a film counts as a search that led to it, with the tag as query.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from index.sequence.events import Task
from training.data.dataset import DataSet
from training.data.sources.filters import Filters
from training.data.sources.log import Log, Part, data_set_of
from training.data.sources.log_files import Column, scan_text, text_file

NAME = "movielens-tags"
NO_GENRE = "(no genres listed)"
YEAR = r"\((\d{4})\)\s*$"
SIMULATION = {
    "behaviour": "a tag counts as a search that led to the film, a rating as a recommendation",
    "query": "the tag, which was written after the film was found",
}
EVENT = {"userId": Column.ID, "movieId": Column.ID, "timestamp": Column.NUMBER}


def movielens_tags(source: Path, filters: Filters) -> DataSet:
    """Read the files. Raises `DataError` for a missing file or column, and cells that are no such value."""
    films, ratings, tags = (text_file(source, name) for name in ("movies.csv", "ratings.csv", "tags.csv"))
    year = pl.col("title").str.extract(YEAR).cast(pl.Int64)
    genres = (
        pl.col("genres").str.split("|").list.eval(pl.element().filter(~pl.element().is_in(["", NO_GENRE])))
    )
    items = scan_text(films, {"movieId": Column.ID, "title": Column.TEXT, "genres": Column.TEXT}).select(
        pl.col("movieId").alias("item_id"),
        pl.col("title").str.replace(YEAR, "").str.strip_chars().alias("title"),
        genres.alias("categories"),
        year.alias("year"),
        (pl.format("{}s", year // 10 * 10)).alias("decade"),
    )
    parts = [
        Part(str(tags), _events(tags, pl.col("tag"), {"tag": Column.TEXT}), Task.SEARCH, queries="tag"),
        Part(str(ratings), _events(ratings, pl.lit(None, pl.String), {}), Task.RECOMMENDATION),
    ]
    log = Log(NAME, "MovieLens with tags (GroupLens)", items, f"{films}: title", parts, simulation=SIMULATION)
    return data_set_of(log, filters)


def _events(path: Path, query: pl.Expr, more: dict[str, Column]) -> pl.LazyFrame:
    return scan_text(path, EVENT | more).select(
        pl.col("userId").alias("user_id"),
        pl.col("movieId").alias("item_id"),
        "timestamp",
        query.alias("query"),
        pl.lit(True).alias("chosen"),
    )
