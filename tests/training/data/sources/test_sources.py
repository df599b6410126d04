"""MovieLens and Amazon Beauty: counts, simulation, splits, and a missing source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.data_sets import same
from support.paths import ROOT

from index.catalogue import Item
from index.sequence.events import Task
from training.data.assets import main_file
from training.data.dataset import DataSet
from training.data.schema import DataError
from training.data.sources.amazon_beauty import Behaviour, amazon_beauty
from training.data.sources.movielens import (
    Rating,
    at_least,
    film_queries,
    movielens,
    read_movielens,
    title_words,
)
from training.data.splits import leave_one_out

BEAUTY = ROOT.parent / "shared" / "data" / "amazon_beauty"
needs_beauty = pytest.mark.skipif(
    not (BEAUTY / "items.jsonl").is_file(),
    reason=f"Amazon Beauty is not at {BEAUTY}; it may not be redistributed, so it is tested only where it is",
)


@pytest.fixture(scope="module")
def films() -> DataSet:
    return movielens()


@pytest.fixture(scope="module")
def beauty() -> DataSet:
    return amazon_beauty(BEAUTY)


def test_movielens_has_the_expected_size(films: DataSet) -> None:
    assert dict(films.info.counts) == {
        "users": 671,
        "items": 3496,
        "interactions": 90072,
        "search": 45008,
        "recommendation": 45064,
    }
    left_out = sum(films.info.left_out.values())
    assert films.info.left_out["ratings of films without title or year"] == 7
    assert 90072 + left_out == 100_004
    assert set(films.info.simulation) == {"behaviour", "query"}


def test_movielens_keeps_films_and_people_with_five_ratings(films: DataSet) -> None:
    ratings = [event.item for user in films.users for event in user.events]
    assert min(ratings.count(row) for row in range(0, len(films.catalogue), 97)) >= 5
    assert min(len(user.events) for user in films.users) >= 5
    assert all(list(user.timestamps) == sorted(user.timestamps) for user in films.users)


def test_every_movielens_query_is_made_of_words_of_the_film(films: DataSet) -> None:
    allowed = [{query for group in film_queries(item) for query in group} for item in films.catalogue]
    for user in films.users:
        for event, simulated in zip(user.events, user.simulated_queries, strict=True):
            assert simulated in allowed[event.item]
            assert event.query == (simulated if event.behaviour is Task.SEARCH else None)


def test_movielens_is_the_same_each_time_and_survives_the_disk(films: DataSet, tmp_path: Path) -> None:
    films.save(tmp_path / "data")
    loaded = DataSet.load(tmp_path / "data")
    assert same(films, loaded)
    first = films.users[0]
    titles = [films.catalogue[event.item].title for event in first.events[-3:]]
    assert (first.user_id, titles, first.simulated_queries[-3:]) == FIXED_FIRST_USER
    attributes = films.catalogue[films.catalogue.row("1") or 0]
    assert (attributes.title, attributes.attributes["year"], attributes.attributes["decade"]) == (
        "Toy Story",
        1995,
        "1990s",
    )


FIXED_FIRST_USER = (
    "1",
    ["Time Bandits", "Beavis and Butt-Head Do America", "Cinema Paradiso (Nuovo cinema Paradiso)"],
    ("adventure comedy", "1990s adventure", "cinema paradiso"),
)


def test_another_pickle_is_not_opened(tmp_path: Path) -> None:
    content = bytearray(main_file("movielens").read_bytes())
    content[1000] ^= 1
    (tmp_path / "movielens.pkl.compress").write_bytes(content)
    with pytest.raises(DataError, match="It is not opened"):
        read_movielens(tmp_path / "movielens.pkl.compress")


def test_dropping_goes_on_until_nothing_is_left_to_drop() -> None:
    # Film 9 is dropped first; then person 3 has one rating left, and without person 3 film 2 has one.
    ratings = [Rating(1, 1, 0), Rating(1, 4, 0), Rating(2, 1, 0), Rating(2, 4, 0), Rating(2, 2, 0)]
    ratings += [Rating(3, 2, 0), Rating(3, 9, 0)]
    assert at_least(ratings, 2) == ratings[:4]
    assert at_least(ratings, 8) == []


def test_title_words_and_queries() -> None:
    assert title_words("City of Lost Children, The (Cité des enfants perdus, La)") == [
        "city",
        "lost",
        "children",
    ]
    assert title_words("Ocean's Eleven") == ["ocean's", "eleven"]
    assert title_words("M") == []
    assert title_words("Toy Story 2") == ["toy", "story", "2"]
    film = Item("1", "M", categories=(), attributes={"year": 1931, "decade": "1930s"})
    assert film_queries(film) == [["1930s"]]
    toys = Item("1", "Toy Story", categories=("Animation", "Comedy"), attributes={"decade": "1990s"})
    queries = {query for group in film_queries(toys) for query in group}
    assert {"comedy", "comedy 1990s", "1990s animation", "toy story", "toy animation"} <= queries


@needs_beauty
def test_beauty_has_the_expected_size_and_half_searches(beauty: DataSet) -> None:
    counts = dict(beauty.info.counts)
    assert (counts["users"], counts["items"], counts["interactions"]) == (22_363, 12_101, 198_502)
    assert abs(counts["search"] / counts["interactions"] - 0.5) < 0.005
    assert set(beauty.info.simulation) == {"behaviour", "query", "timestamp"}
    assert " > " in beauty.catalogue[0].categories[0]


@needs_beauty
def test_beauty_queries_are_those_of_the_item_and_orders_are_kept(beauty: DataSet) -> None:
    items = [json.loads(line) for line in (BEAUTY / "items.jsonl").open(encoding="utf-8")]
    users = [json.loads(line) for line in (BEAUTY / "users.jsonl").open(encoding="utf-8")]
    for record, user in zip(users, beauty.users, strict=True):
        assert [event.item for event in user.events] == record["items"]
        for event, simulated in zip(user.events, user.simulated_queries, strict=True):
            assert simulated in items[event.item]["queries"]
            assert event.query is None or event.query == simulated


@needs_beauty
def test_beauty_is_tested_both_ways_and_has_the_known_floor(beauty: DataSet) -> None:
    split = leave_one_out(beauty)
    assert len(split.train) == len(split.validation) == len(split.test) == 22_363
    assert all(case.query for case in split.test)
    seen = [0] * len(beauty.catalogue)
    for events in split.train:
        for event in events:
            seen[event.item] += 1
    top = sorted(range(len(seen)), key=seen.__getitem__)[-10:]
    hits = sum(case.target in top for case in split.test) / len(split.test)
    assert round(hits, 3) == 0.011  # the minimum that the README of the data set states


@needs_beauty
def test_beauty_without_searches_has_the_same_events(beauty: DataSet) -> None:
    plain = amazon_beauty(BEAUTY, Behaviour.RECOMMENDATION)
    assert plain.info.counts["search"] == 0
    assert set(plain.info.simulation) == {"timestamp"}
    assert [[event.item for event in user.events] for user in plain.users] == [
        [event.item for event in user.events] for user in beauty.users
    ]
    assert not any(case.query for case in leave_one_out(plain).test)


def test_without_the_source_the_message_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items\.jsonl is missing.*--source"):
        amazon_beauty(tmp_path)


@pytest.mark.parametrize(
    ("items", "users"),
    [
        ('{"item": 0}\n', ""),
        ('{"item": 3, "asin": "a", "title": "A", "categories": [], "queries": []}\n', ""),
        ("nonsense\n", ""),
        (
            '{"item": 0, "asin": "a", "title": "A", "categories": [], "queries": []}\n',
            '{"user": 1, "items": [7]}\n',
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, items: str, users: str) -> None:
    (tmp_path / "items.jsonl").write_text(items)
    (tmp_path / "users.jsonl").write_text(users)
    with pytest.raises(DataError):
        amazon_beauty(tmp_path)
