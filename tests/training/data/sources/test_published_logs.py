"""Published logs: rows in the layout of each source, odd values included, against truth worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.logs import (
    MILLISECONDS,
    SECONDS,
    write_amazon_2014,
    write_amazon_2023,
    write_jdsearch,
    write_kuaisar,
    write_movielens_tags,
    write_qilin,
)

from index.sequence.events import Task
from training.data.dataset import DataSet
from training.data.schema import DataError
from training.data.sources.amazon_reviews import amazon_reviews
from training.data.sources.category_queries import path_query
from training.data.sources.filters import CatalogueOf, Filters
from training.data.sources.jdsearch import jdsearch
from training.data.sources.kuaisar import kuaisar
from training.data.sources.movielens_tags import movielens_tags
from training.data.sources.qilin import qilin
from training.data.splits import chronological_users

ALL = Filters()
History = Sequence[tuple[str, str | None, Any]]


def histories(dataset: DataSet) -> dict[str, History]:
    """Item id, query and time of each event, by person."""
    return {
        user.user_id: [
            (dataset.catalogue[event.item].item_id, event.query, time)
            for event, time in zip(user.events, user.timestamps, strict=True)
        ]
        for user in dataset.users
    }


def after(seconds: int, unit: int = 1) -> int:
    return (SECONDS + seconds) * unit


def test_qilin(tmp_path: Path) -> None:
    dataset = qilin(write_qilin(tmp_path), ALL)
    assert histories(dataset) == {
        "1": [("13", None, after(40)), ("10", "早茶", after(50)), ("11", "早茶", after(50))],
        "2": [("13", "徒步 西湖", after(70)), ("11", None, after(80)), ("11", None, after(80))],
        "3": [("10", "早茶", after(5))],
    }
    assert dict(dataset.info.left_out) == {
        "items that were shown and not chosen": 2,
        "interactions without a person, an item or a time": 1,
        "searches without a query": 1,
        "items without a title": 1,
        "repeated rows of an item": 1,
        "interactions with items that have no title or no row": 2,
    }
    notes = {item.item_id: item for item in dataset.catalogue}
    assert set(notes) == {"10", "11", "13"}
    assert notes["11"].title == "没有标题的笔记，第一行"  # the first line stands for a missing title
    assert notes["10"].attributes == {"note_type": ["1"], "taxonomy1_id": ["7"]}
    assert notes["10"].text() == "广州早茶攻略. 虾饺和烧卖\n第二行"  # ids are no text
    assert not dataset.info.simulation


@pytest.mark.parametrize(
    ("signal", "chosen"),
    [("like", {"2": [("13", "徒步 西湖", after(70))]}),
     ("page_time", {"1": [("10", "早茶", after(50))], "2": [("11", None, after(80))]})],
)  # fmt: skip
def test_another_signal_of_qilin(tmp_path: Path, signal: Any, chosen: dict[str, History]) -> None:
    """A page time of NaN or -1 is none: the event of note 11 at 50, and of note 13 at 40, are not among them."""
    assert histories(qilin(write_qilin(tmp_path), Filters(deduplicate=True), signal)) == chosen


def test_kuaisar(tmp_path: Path) -> None:
    dataset = kuaisar(write_kuaisar(tmp_path), ALL)
    assert histories(dataset) == {
        "1": [("100", "213w 5w", MILLISECONDS + 20_000), ("103", None, MILLISECONDS + 30_000)],
        "2": [("100", None, MILLISECONDS + 500)] * 2,
        "3": [("101", "24w", MILLISECONDS + 20)],
    }
    assert dict(dataset.info.left_out) == {
        "items that were shown and not chosen": 2,
        "interactions without a person, an item or a time": 2,
        "searches without a query": 1,
        "items without a title": 1,
        "interactions with items that have no title or no row": 2,
    }
    videos = {item.item_id: item for item in dataset.catalogue}
    assert videos["100"].title == "1w 213w 24w"
    assert videos["101"].title == "Funny > Funny joke"
    assert videos["100"].categories == ("Funny > Funny joke",)
    assert videos["103"].categories == ()
    assert "time stamps are milliseconds since 1970" in dataset.info.notes
    liked = kuaisar(tmp_path, ALL, "like")  # searches count by clicks all the same
    assert histories(liked) == {
        "1": [("100", "213w 5w", MILLISECONDS + 20_000), ("103", None, MILLISECONDS + 30_000)],
        "3": [("101", "24w", MILLISECONDS + 20)],
    }


@pytest.mark.parametrize("headed", [True, False])
def test_jdsearch(tmp_path: Path, headed: bool) -> None:
    dataset = jdsearch(write_jdsearch(tmp_path, headed), ALL)
    assert histories(dataset) == {
        "1": [
            ("889", "323w 328w", 0), ("256", None, 12), ("345", "12w 54w", 16), ("456", "12w 32w 56w", 21),
            ("457", "12w 32w 56w", 21),
        ],
        "2": [("256", "7w", 0)],
        "3": [("256", None, 3)],  # product 555 has no metadata, and the last query led to nothing
    }  # fmt: skip
    product = dataset.catalogue[dataset.catalogue.row("889") or 0]
    assert product.title == "5w 60w"
    assert product.categories == ("44w > 27w 27w > 19w > 47w",)
    assert product.attributes == {"brand": "5w", "brand_id": ["1"], "shop_id": ["99"]}
    with pytest.raises(DataError, match="time stamps of 'jdsearch' are simulated"):
        chronological_users(dataset)  # people have no order in time


def test_choices_of_jdsearch_by_their_strength(tmp_path: Path) -> None:
    source = write_jdsearch(tmp_path)
    assert {
        user: [row[0] for row in rows] for user, rows in histories(jdsearch(source, ALL, "cart")).items()
    } == {
        "1": ["889", "345", "457"],
        "2": ["256"],
    }
    assert {
        user: [row[0] for row in rows] for user, rows in histories(jdsearch(source, ALL, "purchase")).items()
    } == {"1": ["889", "457"]}


def test_movielens_tags(tmp_path: Path) -> None:
    dataset = movielens_tags(write_movielens_tags(tmp_path), ALL)
    assert histories(dataset) == {
        "1": [("1", None, after(100)), ("1", "pixar", after(200)), ("2", None, after(300))],
        "2": [("1", 'a "classic", still', after(90)), ("3", None, after(100))],
        "3": [("1", None, after(50))],
    }
    films = list(dataset.catalogue)
    assert [(film.title, film.categories, film.attributes.get("year")) for film in films] == [
        ("Toy Story", ("Adventure", "Animation"), 1995), ('Heat, "The"', (), 1995), ("No year", ("Drama",), None),
    ]  # fmt: skip
    assert set(dataset.info.simulation) == {"behaviour", "query"}


def test_amazon_reviews_of_2014(tmp_path: Path) -> None:
    dataset = amazon_reviews(write_amazon_2014(tmp_path), ALL)
    items = {item.item_id: item for item in dataset.catalogue}
    assert set(items) == {"B0", "B1", "B3"}  # B2 has no title, nobody had B9
    assert items["B0"].title == "Apples & Pears"
    assert items["B0"].attributes == {"brand": "It's"}
    assert items["B0"].categories == ("Electronics > Cables & Adapters > The Cables", "Electronics")
    expected = {"B0": "electronics cables adapters", "B1": "electronics screens", "B3": None}
    found = set()
    for user in dataset.users:
        for event, would in zip(user.events, user.simulated_queries, strict=True):
            assert would == expected[dataset.catalogue[event.item].item_id]
            assert event.query in (None, would)
            found.add((would is None, event.behaviour))
    # both behaviours occur, and what has no path of two levels is never searched
    assert found == {(False, Task.SEARCH), (False, Task.RECOMMENDATION), (True, Task.RECOMMENDATION)}
    assert set(dataset.info.simulation) == {"behaviour", "query"}


def test_simulated_searches_follow_the_seed_alone(tmp_path: Path) -> None:
    source = write_amazon_2014(tmp_path)
    one = histories(amazon_reviews(source, Filters(seed=1)))
    assert one == histories(amazon_reviews(source, Filters(seed=1)))
    assert one != histories(amazon_reviews(source, Filters(seed=2)))
    cut = histories(amazon_reviews(source, Filters(seed=1, newest=1)))  # filters change no query
    assert cut == {user: events[-1:] for user, events in one.items()}
    plain = amazon_reviews(source, ALL, "none")
    assert plain.info.counts["search"] == 0
    assert not plain.info.simulation


def test_amazon_reviews_of_2023(tmp_path: Path) -> None:
    dataset = amazon_reviews(write_amazon_2023(tmp_path), ALL)
    assert [(row[0], row[2]) for row in histories(dataset)["AEU"]] == [
        (f"P{time % 2}", after(time, 1000)) for time in range(4)
    ]
    headphones, cable = dataset.catalogue
    assert headphones.description == "Big ears"
    assert headphones.categories == ("Electronics > Headphones > In-Ear Headphones",)
    assert headphones.attributes == {"brand": "Acme"}
    assert (cable.title, cable.categories) == ("Cable", ())
    assert "time stamps are milliseconds since 1970" in dataset.info.notes


def test_queries_of_category_paths() -> None:
    assert path_query(["Electronics", "Cables & Adapters", "The Cables"]) == "electronics cables adapters"
    assert path_query(["Electronics"]) == ""
    assert path_query(["The", "&"]) == ""


@pytest.mark.parametrize(
    ("catalogue", "kept"),
    [("chosen", {"10", "13", "11"}), ("shown", {"10", "11", "13", "14"}), ("all", {"10", "11", "13", "14"})],
)
def test_items_of_the_catalogue(tmp_path: Path, catalogue: str, kept: set[str]) -> None:
    dataset = qilin(write_qilin(tmp_path), Filters(catalogue=CatalogueOf(catalogue)))
    assert set(dataset.catalogue.item_ids) == kept
    assert histories(dataset) == histories(qilin(tmp_path, ALL))


def test_only_what_was_shown_to_the_people_kept(tmp_path: Path) -> None:
    """Only person 1 saw note 14."""
    source = write_qilin(tmp_path)
    for catalogue, sees in (("shown", False), ("all", True)):
        filters = Filters(newest=2, core=2, catalogue=CatalogueOf(catalogue))
        dataset = qilin(source, filters, "page_time")
        assert set(histories(dataset)) == {"2"}
        assert ("14" in dataset.catalogue.item_ids) == sees


def test_a_kept_log_survives_the_disk(tmp_path: Path) -> None:
    dataset = qilin(write_qilin(tmp_path / "source"), ALL)
    dataset.save(tmp_path / "data")
    loaded = DataSet.load(tmp_path / "data")
    assert loaded.users == dataset.users
    assert list(loaded.catalogue) == list(dataset.catalogue)
    assert json.loads((tmp_path / "data" / "data.json").read_text("utf-8"))["left_out"] == dict(
        dataset.info.left_out
    )
