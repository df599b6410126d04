"""The lexical index compared with plain Python: BM25, all words, titles and codes; and its files, whole or damaged."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import bm25s
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.catalogue import Catalogue, CatalogueError, Item
from index.pool.lexical import MOST_REPLACED, MOST_WORDS, LexicalIndex, code, label
from index.pool.postings import K1, B
from index.words import holds_all, terms, words

ITEMS = [
    Item(
        "B00X4WHP5E",
        "WD-40 Spray 100 ml",
        "Penetrating oil",
        ("Garage > Oil",),
        {"sku": "AB-1234/5", "brand": "WD"},
    ),
    Item("2", "Spider-Man: Far from Home", "", ("Films",), {"year": 2019, "tags": ["Super Hero", "Marvel"]}),
    Item("3", "Amélie", "Le fabuleux destin d'Amélie Poulain", ("Films",), {"year": 2001, "rating": 8.0}),
    Item("4", "食パン", "毎朝のパン"),
    Item("5", "ハンカチ", "バンド"),
    Item("6", "Война и мир", "Ещё одна книга"),
    Item("7", "น้ำมันพืช"),
    Item("8", "Straße nach Süden", attributes={"sold": True}),
    Item("9", "???"),
]
ATTRIBUTES = ("sku", "brand", "year", "tags", "rating")
INDEX = LexicalIndex.build(Catalogue(ITEMS), ATTRIBUTES)
EVERY = np.arange(len(ITEMS))


def with_all_words(query: str) -> list[str]:
    return [ITEMS[row].item_id for row in np.flatnonzero(INDEX.match(query).all_words)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("wd40", ["B00X4WHP5E"]), ("WD 40", ["B00X4WHP5E"]), ("100ml", ["B00X4WHP5E"]), ("ab12345", ["B00X4WHP5E"]),
        ("spiderman", ["2"]), ("films 2019", ["2"]), ("super hero", ["2"]), ("films 8", ["3"]), ("AMELIE", ["3"]),
        ("パン", ["4"]), ("朝", ["4"]), ("バン", ["5"]), ("ハン", ["5"]), ("еще", ["6"]), ("น้ำ", ["7"]),
        ("strasse suden", ["8"]), ("films", ["2", "3"]), ("true", []), ("films パン", []),
        ("", []), ("?!", []), ("❤️", []),
    ],
)  # fmt: skip
def test_items_with_all_words(query: str, found: list[str]) -> None:
    assert with_all_words(query) == found


@pytest.mark.parametrize(
    ("query", "titles", "codes"),
    [
        ("wd-40 spray, 100ML", ["B00X4WHP5E"], []), ("AB 12345", [], ["B00X4WHP5E"]),
        ("b00x4whp5e", [], ["B00X4WHP5E"]),
        ("spider man far from home", ["2"], []), ("2019", [], ["2"]), ("20 19", [], []), ("20-19", [], []),
        ("marvel", [], ["2"]), ("8", [], ["3", "8"]),
        ("食パン", ["4"], []), ("パン", [], []), ("?", [], []), ("", [], []), ("true", [], []),
    ],
)  # fmt: skip
def test_whole_titles_and_codes(query: str, titles: list[str], codes: list[str]) -> None:
    match = INDEX.match(query)
    assert [ITEMS[row].item_id for row in match.title_rows] == titles
    assert [ITEMS[row].item_id for row in match.attribute_rows] == codes
    assert np.flatnonzero(match.exact_title(EVERY)).tolist() == match.title_rows.tolist()
    assert np.flatnonzero(match.exact_attribute(EVERY)).tolist() == match.attribute_rows.tolist()
    assert match.exact_title(np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("garage oil", ["B00X4WHP5E"]), ("Oil, garage", ["B00X4WHP5E"]), ("OIL", ["B00X4WHP5E"]), ("garage", []),
        ("films", ["2", "3"]), ("film", []), ("films 2019", []), ("", []), ("?", []),
    ],
)  # fmt: skip
def test_whole_categories_in_any_order_and_the_last_part_of_a_path(query: str, found: list[str]) -> None:
    match = INDEX.match(query)
    assert [ITEMS[row].item_id for row in match.category_rows] == found
    assert np.flatnonzero(match.exact_category(EVERY)).tolist() == match.category_rows.tolist()


def older(folder: Path, written: int) -> None:
    """Make a stored index one of an older format: with scores in place of counts."""
    np.save(folder / "posting_scores.npy", INDEX.postings.scores)
    (folder / "posting_counts.npy").unlink()
    record = json.loads((folder / "lexical.json").read_text("utf-8"))
    (folder / "lexical.json").write_text(json.dumps(record | {"format": written}), "utf-8")


def test_an_index_from_before_categories_has_none(folder: Path) -> None:
    older(folder, 1)
    for path in folder.glob("by_category_*"):
        path.unlink()
    match = LexicalIndex.open(folder).match("films")
    assert not match.exact_category(EVERY).any()
    assert match.scores.tolist() == INDEX.match("films").scores.tolist()


@pytest.mark.parametrize(
    ("query", "shares"),
    [
        ("spray", {0: 1 / 5}), ("wd-40", {0: 2 / 5}), ("wd40 spray", {0: 3 / 5}), ("far home", {1: 2 / 5}),
        ("spiderman", {1: 1 / 5}), ("spider man far from home", {1: 1.0}), ("amelie", {2: 1.0}), ("amelie films", {}),
        ("パン", {3: 0.5}), ("食パン", {3: 1.0}), ("", {}), ("zzzzzz", {}), ("sprey", {0: 1 / 5}),
    ],
)  # fmt: skip
def test_the_share_of_a_title_that_a_query_names(query: str, shares: dict[int, float]) -> None:
    found = INDEX.match(query).title_share(EVERY[::-1])[::-1]
    assert found.tolist() == pytest.approx([shares.get(row, 0.0) for row in EVERY])


def test_words_that_nobody_has_are_replaced_and_count_less() -> None:
    match, right = INDEX.match("sprey oil"), INDEX.match("spray oil")
    assert match.replaced == {"sprey": ("spray",)}
    assert (match.known_share, right.known_share) == (0.5, 1.0)
    assert match.all_words.tolist() == right.all_words.tolist()
    assert 0 < match.scores[0] < right.scores[0]
    assert INDEX.match("oil spr").replaced == {"spr": ("spray",)}  # a beginning, as the last word only
    assert INDEX.match("spr oil").replaced == {}
    assert INDEX.match("penetrating sprya").replaced == {"sprya": ("spray",)}


def test_known_words_codes_and_pairs_of_characters_are_never_replaced() -> None:
    assert INDEX.match("films").replaced == {}
    assert INDEX.match("ab12346").replaced == {}
    assert INDEX.match("食ハ").replaced == {}
    assert INDEX.match("zqxv").replaced == {}
    assert INDEX.match("zqxv").known_share == 0


def test_the_work_for_a_query_is_bounded() -> None:
    many = INDEX.match(" ".join(f"zz{chr(97 + k % 26)}{chr(97 + k // 26)}" for k in range(300)))
    assert len(many.words) == MOST_WORDS
    typed = INDEX.match(" ".join(["sprey", "penetratign", "marvle", "fabuleus", "destim"]))
    assert len(typed.replaced) == MOST_REPLACED
    assert not typed.all_words.any()


def test_an_unknown_search_attribute_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        CatalogueError, match=r"'skuu'; the attributes are: brand, rating, sku, sold, tags, year"
    ):
        LexicalIndex.build(Catalogue(ITEMS), ["sku", "skuu"])
    with pytest.raises(CatalogueError, match="searched anyway"):
        LexicalIndex.build(Catalogue(ITEMS), ["title"])


def test_a_catalogue_without_a_word_can_be_searched() -> None:
    index = LexicalIndex.build(Catalogue([Item("?", "???"), Item("!", "!")]))
    assert index.match("star").scores.tolist() == [0, 0]


WORDS = st.sampled_from(
    ["ab", "ba", "cd", "dc", "ab-12", "ab12", "12", "7", "1,000", "é", "食", "食パ", "パン", "パ"]
)  # too short for typing errors
TEXTS = st.lists(WORDS, max_size=8).map(" ".join)
CATALOGUES = st.lists(
    st.tuples(
        WORDS,
        TEXTS,
        st.none() | WORDS | st.integers(0, 3),
        st.lists(st.lists(WORDS, max_size=3).map(" > ".join)),
    ),
    min_size=1,
    max_size=12,
).map(
    lambda rows: Catalogue(
        Item(f"#{k}", title, text, tuple(categories), {"code": value})
        for k, (title, text, value, categories) in enumerate(rows)
    )
)


def terms_of(item: Item) -> list[str]:
    value = item.attributes.get("code")
    return terms(item.text()) + (terms(str(value)) if isinstance(value, int) else [])


def bm25(items: Sequence[list[str]], term: str) -> list[float]:
    mean = sum(map(len, items)) / len(items)
    n = sum(term in item for item in items)
    idf = math.log(1 + (len(items) - n + 0.5) / (n + 0.5))
    return [
        idf * f / (f + K1 * (1 - B + B * len(item) / mean)) if (f := Counter(item)[term]) else 0.0
        for item in items
    ]


@given(CATALOGUES, st.lists(st.sampled_from(["ab", "ba", "cd", "dc", "e", "zz"]), max_size=5))
@settings(max_examples=150, deadline=None)
def test_scores_are_bm25(catalogue: Catalogue, asked: list[str]) -> None:
    items = [terms_of(item) for item in catalogue]
    expected = np.zeros(len(items))
    for term in dict.fromkeys(asked):
        expected += bm25(items, term) if any(items) else 0
    match = LexicalIndex.build(catalogue, ["code"]).match(" ".join(asked))
    np.testing.assert_allclose(match.scores, expected, rtol=1e-4)
    assert match.known_share == (
        np.mean([any(t in i for i in items) for t in dict.fromkeys(asked)]) if asked else 0
    )


@given(CATALOGUES, TEXTS | st.text(max_size=4))
@settings(max_examples=300, deadline=None)
def test_lookups_equal_a_comparison_with_every_item(catalogue: Catalogue, query: str) -> None:
    match = LexicalIndex.build(catalogue, ["code"]).match(query)
    every = np.arange(len(catalogue))
    for row, item in enumerate(catalogue):
        found = set(terms_of(item))
        assert match.all_words[row] == (bool(words(query)) and holds_all(found, query))
        assert (match.scores[row] > 0) == (match.found[row] > 0)
        whole = bool(words(query)) and code(item.title) == code(query)
        assert match.exact_title(every)[row] == whole
        value = item.attributes.get("code")
        apart = code(query).isdecimal() and len(words(query)) > 1
        assert match.exact_attribute(every)[row] == (
            bool(words(query))
            and not apart
            and code(query) in (code(item.item_id), "" if value is None else code(str(value)))
        )
        parts = {part for each in item.categories for part in (each, each.split(">")[-1])}
        named = bool(words(query)) and label(query) in map(label, parts)
        assert match.exact_category(every)[row] == named
        in_title = bool(words(query)) and holds_all(set(terms(item.title)), query)
        assert (match.title_share(every)[row] > 0) == (in_title or whole)
        assert match.title_share(every)[row] <= 1


@given(CATALOGUES, st.lists(st.integers(0, 11), max_size=4))
@settings(max_examples=200, deadline=None)
def test_likeness_is_the_largest_cosine_of_titles(catalogue: Catalogue, history: list[int]) -> None:
    history = [row for row in history if row < len(catalogue)]
    index = LexicalIndex.build(catalogue, ["code"])
    items = [set(terms_of(item)) for item in catalogue]
    titles = [set(terms(item.title)) for item in catalogue]

    def square(some: set[str]) -> float:
        count = {term: sum(term in item for item in items) for term in some}
        return sum(math.log(1 + (len(items) - n + 0.5) / (n + 0.5)) ** 2 for n in count.values())

    def cosine(one: set[str], other: set[str]) -> float:
        length = math.sqrt(square(one) * square(other))
        return square(one & other) / length if length else 0.0

    expected = [
        max((cosine(titles[row], titles[other]) for other in history if other != row), default=0.0)
        for row in range(len(catalogue))
    ]
    np.testing.assert_allclose(index.likeness(np.arange(len(catalogue)), history), expected, atol=1e-5)


def assert_same_index(one: LexicalIndex, other: LexicalIndex, folder: Path) -> None:
    for name, index in (("one", one), ("other", other)):
        index.save(folder / name)
    for path in (folder / "other").iterdir():
        assert (folder / "one" / path.name).read_bytes() == path.read_bytes(), path.name
    assert one.postings.scores.tolist() == other.postings.scores.tolist()


@given(CATALOGUES, CATALOGUES, st.data())
@settings(max_examples=100, deadline=None)
def test_an_update_gives_the_index_that_is_built_anew(
    before: Catalogue, given: Catalogue, data: st.DataObject
) -> None:
    """Items are changed and added; the words of all others are not read again."""
    rows = data.draw(st.lists(st.integers(0, len(before) - 1), unique=True, max_size=len(given)))
    changed = {
        row: replace(item, item_id=before[row].item_id) for row, item in zip(rows, given, strict=False)
    }
    new = [replace(item, item_id=f"new {item.item_id}") for item in given[len(rows) :]]
    after = before.updated(changed, new)
    updated = LexicalIndex.build(before, ["code"]).updated(after, changed)
    with tempfile.TemporaryDirectory() as folder:
        assert_same_index(updated, LexicalIndex.build(after, ["code"]), Path(folder))


def test_an_update_of_an_older_index_reads_all_items(folder: Path, tmp_path: Path) -> None:
    older(folder, 2)
    later = Catalogue([*ITEMS, Item("later", "Later films")])
    index = LexicalIndex.open(folder)
    assert index.match("films 2019").scores.tolist() == INDEX.match("films 2019").scores.tolist()
    assert_same_index(index.updated(later, []), LexicalIndex.build(later, ATTRIBUTES), tmp_path)


def test_scores_are_those_of_bm25s() -> None:
    index = LexicalIndex.build(Catalogue(ITEMS))
    number = {term: k for k, term in enumerate(index.lexicon.terms())}
    model = bm25s.BM25(k1=K1, b=B, method="lucene")
    texts = [[number[term] for term in terms(item.text())] for item in ITEMS]
    model.index((texts, number), create_empty_token=False, show_progress=False)
    for place in number.values():
        rows, scores = index.postings.of_term(place)
        begin, end = model.scores["indptr"][place : place + 2]
        expected = dict(zip(model.scores["indices"][begin:end], model.scores["data"][begin:end], strict=True))
        assert dict(zip(rows.tolist(), scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-5)


@given(CATALOGUES, TEXTS, st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_items_does_not_matter(catalogue: Catalogue, query: str, random: object) -> None:
    order = list(range(len(catalogue)))
    random.shuffle(order)  # type: ignore[attr-defined]
    here = LexicalIndex.build(catalogue, ["code"]).match(query)
    there = LexicalIndex.build(Catalogue(catalogue[row] for row in order), ["code"]).match(query)
    assert there.scores.tolist() == here.scores[order].tolist()
    assert there.all_words.tolist() == here.all_words[order].tolist()
    assert sorted(order[row] for row in there.title_rows) == here.title_rows.tolist()
    assert sorted(order[row] for row in there.category_rows) == here.category_rows.tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    INDEX.save(tmp_path / "lexical")
    return tmp_path / "lexical"


def test_a_stored_index_gives_the_same_matches(folder: Path) -> None:
    again = LexicalIndex.open(folder)
    assert (again.items, again.attributes, again.nbytes) == (INDEX.items, INDEX.attributes, INDEX.nbytes)
    for query in ("wd40", "films 2019", "sprey", "食パン", "b00x4whp5e", ""):
        here, there = INDEX.match(query), again.match(query)
        assert here.words == there.words
        assert here.scores.tolist() == there.scores.tolist()
        assert here.title_share(EVERY).tolist() == there.title_share(EVERY).tolist()
        assert here.attribute_rows.tolist() == there.attribute_rows.tolist()
        assert here.category_rows.tolist() == there.category_rows.tolist()


INDEX_FILES = [
    "by_category_first", "by_category_hashes", "by_category_rows",
    "by_code_first", "by_code_hashes", "by_code_rows", "by_title_first", "by_title_hashes", "by_title_rows",
    "posting_counts", "posting_first", "posting_rows", "term_first", "term_letters", "title_first", "title_terms",
    "title_words",
]  # fmt: skip


def test_the_list_of_files_is_complete(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["lexical.json", *(f"{name}.npy" for name in INDEX_FILES)]
    )


@pytest.mark.parametrize("name", ["lexical.json", *(f"{name}.npy" for name in INDEX_FILES)])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other bytes"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            {"empty": b"", "cut": content[: len(content) - 9], "other bytes": b"\x80" * 200}[damage]
        )
    with pytest.raises(ValueError, match=name):
        LexicalIndex.open(folder)


def extremes(values: np.ndarray) -> list[np.ndarray]:
    """Return copies of an array of another kind, of another length, and with a number that no array may hold."""
    wrong = [values.astype(np.float64), values[None], np.append(values, values[-1:]), values[:-1]]
    most: float = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    least: float = -1.0 if values.dtype.kind == "f" else np.iinfo(values.dtype).min
    for place, number in ((0, most), (-1, least), (len(values) // 2, most)):
        changed = values.copy()
        changed[place] = number
        wrong.append(changed)
    return wrong


@pytest.mark.parametrize("name", INDEX_FILES)
def test_no_number_is_used_before_it_is_checked(folder: Path, name: str) -> None:
    path = folder / f"{name}.npy"
    values = np.load(path)
    for wrong in extremes(values):
        if np.array_equal(wrong, values):
            continue
        np.save(path, wrong)
        if name == "term_letters" and wrong.shape == values.shape and values[-1] < 0x80 and wrong[-1] == 0:
            LexicalIndex.open(folder).match("ab films")  # another letter
            continue
        with pytest.raises(ValueError, match=str(folder)):
            LexicalIndex.open(folder)


@pytest.mark.parametrize(
    "change",
    [{"items": 8}, {"items": 10**12}, {"items": 0}, {"items": "9"}, {"attributes": [1]}, {"format": 4}],
)
def test_a_wrong_description_is_refused(folder: Path, change: dict[str, object]) -> None:
    path = folder / "lexical.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=str(folder)):
        LexicalIndex.open(folder)
