"""Published logs whose layout differs: an error names file and column, what was found and what is expected."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.logs import (
    WRITERS,
    write_amazon_2014,
    write_amazon_2023,
    write_jdsearch,
    write_kuaisar,
    write_movielens_tags,
    write_qilin,
)

from training.data.schema import DataError
from training.data.sources.amazon_reviews import amazon_reviews
from training.data.sources.filters import Filters
from training.data.sources.jdsearch import jdsearch
from training.data.sources.kuaisar import kuaisar
from training.data.sources.movielens_tags import movielens_tags
from training.data.sources.qilin import qilin

READERS: dict[str, Callable[..., Any]] = {
    "qilin": qilin, "kuaisar": kuaisar, "jdsearch": jdsearch, "movielens-tags": movielens_tags,
    "amazon-reviews": amazon_reviews,
}  # fmt: skip
ALL = Filters()
FILES = {
    "qilin": ["notes", "search_train", "search_test", "recommendation_train", "recommendation_test"],
    "kuaisar": ["item_features.csv", "src_inter.csv.gz", "rec_inter.csv"],
    "jdsearch": ["user_behavior_data.txt", "product_meta_data.txt"],
    "movielens-tags": ["movies.csv", "ratings.csv", "tags.csv"],
    "amazon-reviews": ["meta_Electronics.json.gz", "reviews_Electronics_5.json.gz"],
}


@pytest.mark.parametrize(("log", "file"), [(log, file) for log, files in FILES.items() for file in files])
def test_a_missing_file(tmp_path: Path, log: str, file: str) -> None:
    path = WRITERS[log](tmp_path / "source") / file
    path.rename(tmp_path / "elsewhere")
    other = next(name for name in FILES[log] if name != file)
    with pytest.raises(DataError, match=r"missing|expected one file") as refused:
        READERS[log](path.parent, ALL)
    expected = (
        file.removesuffix(".gz") if log != "amazon-reviews" else "metadata" if "meta" in file else "reviews"
    )
    assert expected in str(refused.value)
    assert other in str(refused.value)  # what is there


@pytest.mark.parametrize("log", WRITERS)
def test_no_folder(tmp_path: Path, log: str) -> None:
    (tmp_path / "file").write_text("text")
    for path in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(DataError, match=r"not the folder of the published files"):
            READERS[log](path, ALL)


def qilin_column(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        path = write_qilin(folder) / "search_train" / "train-00000-of-00001.parquet"
        change(pl.read_parquet(path)).write_parquet(path)
        return path

    return written


def text_file(write: Callable[[Path], Path], name: str, old: str, new: str) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        path = write(folder) / name
        packed = path.suffix == ".gz"
        text = gzip.decompress(path.read_bytes()).decode() if packed else path.read_text("utf-8")
        assert old in text
        changed = text.replace(old, new, 1).encode()
        path.write_bytes(gzip.compress(changed) if packed else changed)
        return path

    return written


DETAILS = "search_result_details_with_idx"
BEHAVIOUR = "user_behavior_data.txt"
WRONG: dict[str, tuple[str, Callable[[Path], Path], str]] = {
    "a column of Qilin": (
        "qilin",
        qilin_column(lambda frame: frame.drop("query")),
        r"missing column\(s\) query; found",
    ),
    "a type of Qilin": (
        "qilin",
        qilin_column(lambda frame: frame.with_columns(pl.lit(1).alias("query"))),
        r"column 'query' must hold text, found Int32",
    ),
    "no lists of structs": (
        "qilin",
        qilin_column(lambda frame: frame.with_columns(pl.col(DETAILS).list.len())),
        rf"column '{DETAILS}' must hold lists of structs, found UInt32",
    ),
    "a field of the structs": (
        "qilin",
        qilin_column(
             lambda frame: frame.with_columns(
                pl.col(DETAILS).list.eval(
                    pl.element().struct.rename_fields(
                        ["note_idx", "position", "clicked", "like", "page_time", "search_timestamp"]
                    )
                )
            )
        ),
        rf"missing column\(s\) {DETAILS}\.click; found {DETAILS}\.note_idx",
    ),
    "a column of KuaiSAR": (
        "kuaisar",
        text_file(write_kuaisar, "rec_inter.csv", ",click,", ",clicks,"),
        r"missing column\(s\) click; found user_id",
    ),
    "a number of KuaiSAR": (
        "kuaisar",
        text_file(write_kuaisar, "rec_inter.csv", "1700000031000", "yesterday"),
        r"row 2: column 'timestamp' must hold numbers, got 'yesterday'",
    ),
    "words of KuaiSAR": (
        "kuaisar",
        text_file(write_kuaisar, "src_inter.csv.gz", '"[213, 5]"', "funny cats"),
        r"row 1: column 'keyword' must hold lists of word numbers such as \[20, 34, 3\], got 'funny cats'",
    ),
    "seconds among milliseconds": (
        "kuaisar",
        text_file(write_kuaisar, "rec_inter.csv", "1700000000500.0", "1700000000"),
        r"column 'timestamp' holds times of several units: seconds \(1\), milliseconds \(3\)",
    ),
    "a column of MovieLens": (
        "movielens-tags",
        text_file(write_movielens_tags, "tags.csv", "userId", "user"),
        r"missing column\(s\) userId; found user",
    ),
    "a torn line": (
        "movielens-tags",
        text_file(write_movielens_tags, "ratings.csv", "3,1,0.5,1700000050", "3,1,0.5,1700000050,7"),
        r"cannot be read as the published layout",
    ),
    "a type of JDsearch": (
        "jdsearch",
        text_file(write_jdsearch, BEHAVIOUR, "ORD_", "GIFT_"),
        r"row 1: history_type_list must hold CLICK, FLW, CART, ORD",
    ),
    "a label of JDsearch": (
        "jdsearch",
        text_file(write_jdsearch, BEHAVIOUR, "1.0_3.0", "1.0_4.0"),
        r"row 1: candidate_label_list must hold 0 \(none\)",
    ),
    "a list of JDsearch": (
        "jdsearch",
        text_file(write_jdsearch, BEHAVIOUR, "555_256", "555"),
        r"row 3: history_qry_list, history_wid_list and history_type_list must be of one length",
    ),
    "intervals of JDsearch": (
        "jdsearch",
        text_file(write_jdsearch, BEHAVIOUR, "0_3_9", "0_3"),
        r"row 3: history_time_list must have one entry more",
    ),
    "an interval of JDsearch": (
        "jdsearch",
        text_file(write_jdsearch, BEHAVIOUR, "0_3_9", "0_x_9"),
        r"row 3: history_time_list must hold numbers",
    ),
    "a line of products": (
        "amazon-reviews",
        text_file(write_amazon_2014, "meta_Electronics.json.gz", "'Long'}", "'Long'"),
        r"line 2: neither JSON nor a Python literal",
    ),
    "code among the products": (
        "amazon-reviews",
        text_file(write_amazon_2014, "meta_Electronics.json.gz", "1.5", "__import__('os').getpid()"),
        r"line 1: neither JSON nor a Python literal",
    ),
    "a field of products": (
        "amazon-reviews",
        text_file(write_amazon_2023, "meta_Electronics.jsonl", '"parent_asin": "P0"', '"id": "P0"'),
        r"line 1: expected the field asin .* found main_category, title",
    ),
    "a field of reviews": (
        "amazon-reviews",
        text_file(write_amazon_2014, "reviews_Electronics_5.json.gz", "unixReviewTime", "time"),
        r"line 1: expected the fields reviewerID, asin, unixReviewTime or user_id, .*; found reviewerID",
    ),
    "a value of reviews": (
        "amazon-reviews",
        text_file(write_amazon_2014, "reviews_Electronics_5.json.gz", '"asin": "B1"', '"asin": 7'),
        r"line 2: field 'asin' must hold text, found 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_layout_that_differs(tmp_path: Path, what: str) -> None:
    log, write, message = WRONG[what]
    path = write(tmp_path / "source")
    with pytest.raises(DataError, match=message) as refused:
        READERS[log](tmp_path / "source", ALL)
    assert path.name in str(refused.value) or path.parent.name in str(refused.value)


def test_files_of_two_departments(tmp_path: Path) -> None:
    source = write_amazon_2014(tmp_path)
    (source / "reviews_Books_5.json").write_text(json.dumps({}) + "\n")
    with pytest.raises(
        DataError, match=r"one file of reviews.* found reviews_Books_5\.json, reviews_Electronics"
    ):
        amazon_reviews(source, ALL)


def test_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no interaction of MovieLens .* is left; .*fewer than 9 \(--core 9\)"
    ):
        movielens_tags(write_movielens_tags(tmp_path), Filters(core=9))


def test_parts_in_different_units_come_in_the_finest(tmp_path: Path) -> None:
    source = write_movielens_tags(tmp_path)
    tags = pl.read_csv(source / "tags.csv").with_columns(pl.col("timestamp") * 1000)
    expected = movielens_tags(source, ALL)
    tags.write_csv(source / "tags.csv")
    found = movielens_tags(source, ALL)
    assert found.users.items.tolist() == expected.users.items.tolist()
    assert found.users.timestamps.tolist() == [1000 * time for time in expected.users.timestamps.tolist()]
    assert "time stamps are milliseconds since 1970" in found.info.notes


def test_one_file_a_table_will_do_for_qilin(tmp_path: Path) -> None:
    source = write_qilin(tmp_path)
    expected = qilin(source, ALL)
    frame = pl.read_parquet(source / "notes" / "*.parquet")
    for path in (source / "notes").iterdir():
        path.unlink()
    frame.with_columns(pl.col("note_idx").cast(pl.Float64)).write_parquet(source / "notes.parquet")
    found = qilin(source, ALL)
    assert found.users == expected.users
    assert list(found.catalogue) == list(expected.catalogue)
