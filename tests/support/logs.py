"""A few rows of each published log, in its layout, with odd values: written by tests, read by the loaders."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

NAN = float("nan")
SECONDS = 1_700_000_000
RESULT = {
    "note_idx": pl.Int64, "position": pl.Int64, "click": pl.Int64, "like": pl.Int64, "page_time": pl.Float64,
}  # fmt: skip


def result(
    note: int | None, click: int, time: int | None, name: str, like: int = 0, page: float = NAN
) -> dict[str, Any]:
    """A result of Qilin as it stands in a list. time: in seconds after `SECONDS`; name: of its field."""
    stamp = None if time is None else SECONDS + time
    return {"note_idx": note, "position": 1, "click": click, "like": like, "page_time": page, name: stamp}


def write_qilin(folder: Path) -> Path:
    """Two people with both behaviours (1, 2), one who only searches (3)."""

    def searched(note: int | None, click: int, time: int | None, **more: Any) -> dict[str, Any]:
        return result(note, click, time, "search_timestamp", **more)

    def recommended(note: int | None, click: int, time: int | None, **more: Any) -> dict[str, Any]:
        return result(note, click, time, "request_timestamp", **more)

    notes = [
        (10, "广州早茶攻略", "虾饺和烧卖\n第二行", 1, 7),
        (11, None, "没有标题的笔记，第一行\n第二行", 2, None),
        (12, "  ", None, 1, 7),  # no text at all
        (13, "杭州西湖徒步", "", 1, 8),
        (14, "从不被点击", "…", 1, 8),
        (13, "杭州西湖徒步", "", 1, 8),  # twice
    ]
    names = ("note_idx", "note_title", "note_content", "note_type", "taxonomy1_id")
    types = (pl.Int64, pl.String, pl.String, pl.Int64, pl.Int64)
    _parquet(folder / "notes" / "train-00000-of-00002.parquet", names, types, notes[:3])
    _parquet(folder / "notes" / "train-00001-of-00002.parquet", names, types, notes[3:])
    searches = [
        (
            1,
            "早茶",
            [10, 11],
            [searched(10, 1, 50, page=3.5), searched(14, 0, 50), searched(11, 1, 50, page=-1.0)],
        ),
        (2, None, None, [searched(10, 1, 60, page=8.0)]),  # no query
        (2, "徒步 西湖", [], [searched(13, 2, 70, like=1), searched(99, 1, 70), searched(10, 1, None)]),
        (3, "早茶", None, [searched(10, 1, 5), searched(12, 1, 6)]),
        (3, "空", None, []),
        (3, "空", None, None),
    ]
    names, details = ("user_idx", "query", "recent_clicked_note_idxs"), "search_result_details_with_idx"
    types = (
        pl.Int64,
        pl.String,
        pl.List(pl.Int64),
        pl.List(pl.Struct(RESULT | {"search_timestamp": pl.Int64})),
    )
    _parquet(folder / "search_train" / "train-00000-of-00001.parquet", (*names, details), types, searches[:5])
    _parquet(folder / "search_test" / "train-00000-of-00001.parquet", (*names, details), types, searches[5:])
    requests = [
        (1, "早茶", [10], [recommended(13, 1, 40, page=NAN), recommended(10, 0, 40)]),
        (2, None, None, [recommended(11, 1, 80, page=2.0), None]),
        (2, None, None, [recommended(11, 1, 80, page=2.0)]),  # the same once more
    ]
    details = "rec_result_details_with_idx"
    types = (
        pl.Int64,
        pl.String,
        pl.List(pl.Int64),
        pl.List(pl.Struct(RESULT | {"request_timestamp": pl.Int64})),
    )
    _parquet(
        folder / "recommendation_train" / "train-00000-of-00001.parquet",
        (*names, details),
        types,
        requests[:2],
    )
    _parquet(
        folder / "recommendation_test" / "train-00000-of-00001.parquet",
        (*names, details),
        types,
        requests[2:],
    )
    return folder


def _parquet(path: Path, names: Sequence[str], types: Sequence[Any], rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=dict(zip(names, types, strict=True)), orient="row").write_parquet(path)


MILLISECONDS = SECONDS * 1000
LEVELS = [
    f"{level}_level_category_{what}" for level in ("first", "second", "third", "fourth")
    for what in ("id", "name", "name_en")
]  # fmt: skip


def write_kuaisar(folder: Path) -> Path:
    """One person with both behaviours (1), one with recommendations (2), one with searches (3), which are packed."""
    funny = [9, "搞笑", "Funny", 136, "搞笑段子", "Funny joke", 0, "空", "empty", 0, "空", "empty"]
    empty = [0, "空", "empty"] * 4
    head = ["item_id", "caption", "author_id", "item_type", "upload_time", "upload_type", *LEVELS]
    rows: list[list[Any]] = [
        [100, "[1, 213, 24]", 10, "NORMAL", "2023-04-22", "LongImport", *funny],
        [101, "[]", 0, "NORMAL", "1970-01-01", "", *funny],  # no caption: its category names it
        [102, "", 11, "NORMAL", "", "", *empty],  # no features at all
        [103, "[24]", 11, "NORMAL", "", "", *empty],
    ]
    _csv(folder / "item_features.csv", head, rows)
    head = ["user_id", "item_id", "playing_time", "duration_ms", "time", "timestamp", "click", "forward", "like",
            "follow", "search", "search_item_related"]  # fmt: skip
    rows = [
        [1, 103, 60792.0, 45400.0, "2023-05-22 15:53:20", float(MILLISECONDS + 30_000), 1, 0, 1, 0, 0, 0],
        [1, 101, 0.0, 45400.0, "", MILLISECONDS + 31_000, 0, 0, 0, 0, 0, 0],
        [2, 100, "", "", "", f"{MILLISECONDS + 500:.1f}", 1, 0, 0, 0, 1, 0],
        [2, 102, 1.0, 1.0, "", MILLISECONDS + 600, 1, 0, 0, 0, 0, 0],
        [2, 100, "", "", "", f"{MILLISECONDS + 500:.1f}", 1, 0, 0, 0, 1, 0],  # twice
        [2, 103, 1.0, 1.0, "", "", 1, 0, 0, 0, 0, 0],  # no time
        [2, 103, 1.0, 1.0, "1970-01-01 08:00:00", 0.0, 1, 0, 0, 0, 0, 0],  # nor here
    ]
    _csv(folder / "rec_inter.csv", head, rows)
    head = ["user_id", "search_session_id", "search_session_time", "search_session_timestamp", "keyword",
            "search_source", "item_id", "click_cnt", "item_type"]  # fmt: skip
    rows = [
        [1, 7, "", MILLISECONDS + 20_000, "[213, 5]", "USER_INPUT", 100, 2, "VIDEO"],
        [1, 7, "", MILLISECONDS + 20_000, "[213, 5]", "USER_INPUT", 101, 0, "VIDEO"],
        [1, 7, "", MILLISECONDS + 20_000, "[213, 5]", "USER_INPUT", 777, 1, "LIVE"],  # not among the items
        [3, 8, "", MILLISECONDS + 10, "[]", "USER_INPUT", 100, 1, "VIDEO"],  # nothing typed
        [3, 9, "", MILLISECONDS + 20, "[24]", "USER_INPUT", 101, 1, "VIDEO"],
    ]
    _csv(folder / "src_inter.csv", head, rows)
    packed = gzip.compress((folder / "src_inter.csv").read_bytes())
    (folder / "src_inter.csv.gz").write_bytes(packed)
    (folder / "src_inter.csv").unlink()
    return folder


def _csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def write_jdsearch(folder: Path, headed: bool = True) -> Path:
    """Three people: one with both behaviours, one without a history, one whose last query led to nothing."""
    people = [
        ("12\x1832\x1856", "456_457_789", "1.0_3.0_0.0", "323\x18328_-1_12\x1854", "889_256_345", "ORD_CLICK_CART",
         "0_12_4_5"),
        ("7", "256", "2.0", "", "", "", "0"),
        ("7", "256_889", "0.0_0.0", "-1_-1", "555_256", "FLW_CLICK", "0_3_9"),
    ]  # fmt: skip
    products = [
        ("889", "5\x1860", "1", "5", "2", "44", "3", "27\x1827", "4", "19", "5", "47", "99"),
        ("256", "7", "1", "5", "2", "44", "", "", "", "", "", "", "99"),
        ("345", "8\x189", "", "", "", "", "", "", "", "", "", "", ""),
        ("456", "10", "", "", "", "", "", "", "", "", "", "", ""),
        ("457", "11", "", "", "", "", "", "", "", "", "", "", ""),
    ]
    head = ("query", "candidate_wid_list", "candidate_label_list", "history_qry_list", "history_wid_list",
            "history_type_list", "history_time_list")  # fmt: skip
    names = (
        ("user_behavior_data.txt", "product_meta_data.txt")
        if headed
        else ("release_data.txt", "product_data.txt")
    )
    levels = [f"cate_{what}_{level}" for level in range(1, 5) for what in ("id", "name")]
    heads = (head, ("wid", "name", "brand_id", "brand_name", *levels, "shop_id"))
    folder.mkdir(parents=True, exist_ok=True)
    for name, first, rows in zip(names, heads, (people, products), strict=True):
        lines = [first, *rows] if headed else rows
        (folder / name).write_text("".join("\t".join(line) + "\n" for line in lines), "utf-8")
    return folder


def write_movielens_tags(folder: Path) -> Path:
    """Two people with ratings and tags, one with ratings alone."""
    films = [
        [1, "Toy Story (1995)", "Adventure|Animation"],
        [2, 'Heat, "The" (1995)', "(no genres listed)"],
        [3, "No year", "Drama"],
    ]
    ratings = [[1, 1, 4.0, 100], [1, 2, 3.5, 300], [2, 3, 5.0, 100], [3, 1, 0.5, 50], [3, 9, 0.5, 60]]
    tags = [[1, 1, "pixar", 200], [1, 2, "", 250], [2, 1, 'a "classic", still', 90]]
    for row in (*ratings, *tags):
        row[3] += SECONDS  # type: ignore[operator]
    _csv(folder / "movies.csv", ["movieId", "title", "genres"], films)
    _csv(folder / "ratings.csv", ["userId", "movieId", "rating", "timestamp"], ratings)
    _csv(folder / "tags.csv", ["userId", "movieId", "tag", "timestamp"], tags)
    return folder


def write_amazon_2014(folder: Path) -> Path:
    """Reviews in JSON and products as Python literals, both packed."""
    folder.mkdir(parents=True, exist_ok=True)
    reviews = [
        {"reviewerID": f"A{user}", "asin": f"B{item}", "helpful": [0, 1], "reviewText": "…", "overall": 5.0,
         "unixReviewTime": SECONDS + 86_400 * time, "reviewTime": "01 2, 2014"}
        for user in range(12) for time, item in enumerate((user % 3, (user + 1) % 4))
    ]  # fmt: skip
    products = [
        {"asin": "B0", "title": "Apples &amp; Pears", "price": 1.5, "brand": "It's",
         "categories": [["Electronics", "Cables & Adapters", "The Cables"], ["Electronics"]]},
        {"asin": "B1", "title": 'A "15-inch" screen', "categories": [["Electronics", "Screens"]],
         "description": "Long"},
        {"asin": "B2", "categories": [["Electronics", "Nameless"]]},  # no title, as often
        {"asin": "B3", "title": "Lone", "categories": [["Electronics"]]},
        {"asin": "B9", "title": "Never reviewed", "categories": [["Electronics", "Dust"]]},
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in reviews)
    (folder / "reviews_Electronics_5.json.gz").write_bytes(gzip.compress(text.encode()))
    literal = "".join(f"{row!r}\n" for row in products)
    (folder / "meta_Electronics.json.gz").write_bytes(gzip.compress(literal.encode()))
    return folder


def write_amazon_2023(folder: Path) -> Path:
    """Reviews with milliseconds and products with one category path, a null and details."""
    folder.mkdir(parents=True, exist_ok=True)
    reviews = [
        {"rating": 5.0, "title": "…", "asin": "C0", "parent_asin": f"P{time % 2}", "user_id": "AEU",
         "timestamp": (SECONDS + time) * 1000, "verified_purchase": True}
        for time in range(4)
    ]  # fmt: skip
    products = [
        {"main_category": "All Electronics", "title": "Headphones", "features": ["a"], "description": ["Big", "ears"],
         "store": "Acme", "categories": ["Electronics", "Headphones", "In-Ear Headphones"],
         "details": {"Color": "red"}, "parent_asin": "P0", "price": None},
        {"main_category": None, "title": "Cable", "description": [], "categories": [], "parent_asin": "P1"},
    ]  # fmt: skip
    for name, rows in (("Electronics.jsonl", reviews), ("meta_Electronics.jsonl", products)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


WRITERS = {
    "qilin": write_qilin,
    "kuaisar": write_kuaisar,
    "jdsearch": write_jdsearch,
    "movielens-tags": write_movielens_tags,
    "amazon-reviews": write_amazon_2014,
}
