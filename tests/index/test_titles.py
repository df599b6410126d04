"""Word prefixes of titles: the same results as a comparison with every title, in any script."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from index.titles import TitleIndex
from index.words import query_words, terms, words

TITLES = [
    "Star Wars: Episode IV",
    "The Star Chamber",
    "Wars of the Stars",
    "Amélie",
    "Schindler's List",
    "Straße nach Süden",
    "七人の侍",
    "Star",
    "???",
    "食パン",
    "パン屋",
    "ハンカチ",
    "バンド",
    "WD-40 Spray",
]
INDEX = TitleIndex.build(TITLES)


def found(text: str, limit: int = 20) -> list[str]:
    return [TITLES[row] for row in INDEX.find(text, limit)]


def test_titles_that_begin_with_the_text_come_first_and_all_words_have_to_match() -> None:
    assert found("star") == ["Star", "Star Wars: Episode IV", "The Star Chamber", "Wars of the Stars"]
    assert found("sta wa") == ["Star Wars: Episode IV", "Wars of the Stars"]
    assert found("wa star") == ["Star Wars: Episode IV", "Wars of the Stars"]
    assert found("star", 2) == ["Star", "Star Wars: Episode IV"]
    assert found("tar") == []


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("AMELIE", "Amélie"),
        ("ame\u0301l", "Amélie"),
        ("schindlers l", "Schindler's List"),
        ("Schindler’s", "Schindler's List"),
        ("strasse sud", "Straße nach Süden"),
        ("七人", "七人の侍"),
        ("七", "七人の侍"),
        ("侍", "七人の侍"),
        ("the  STAR ch…", "The Star Chamber"),
        ("ﾊﾝ", "ハンカチ"),
        ("wd4", "WD-40 Spray"),
        ("wd 40 sp", "WD-40 Spray"),
        ("wd40", "WD-40 Spray"),
    ],
)
def test_case_accents_and_punctuation_do_not_count(text: str, title: str) -> None:
    assert found(text) == [title]


def test_marks_that_make_another_letter_count() -> None:
    assert found("パン") == ["パン屋", "食パン"]
    assert found("バ") == ["バンド"]


@pytest.mark.parametrize("text", ["", "  ", "?!", "\u0301", "'"])
def test_a_text_without_letters_and_digits_finds_nothing(text: str) -> None:
    assert found(text) == []


def test_removed_items_are_not_found() -> None:
    assert TitleIndex.build(["A star", "A star"], removed=[0]).find("star", 5) == [1]
    assert TitleIndex.build(["A star"], removed=[0]).find("star", 5) == []


TEXT = st.text(st.sampled_from("aAbéßİ1 '-星ハパ\u0301\U0010ffff"), max_size=8)


@given(st.lists(TEXT, max_size=12), TEXT, st.integers(1, 5), st.sets(st.integers(0, 11)))
@example(["ab", "a b", "b a"], "a b", 5, set())
def test_it_finds_what_comparing_every_title_finds(
    titles: list[str], text: str, limit: int, removed: set[int]
) -> None:
    asked = query_words(text)

    def begun(prefix: str, title: str) -> bool:
        return any(term.startswith(prefix) for term in terms(title))

    def matches(title: str) -> bool:
        return all(
            any(all(begun(part, title) for part in spelling) for spelling in word.spellings) for word in asked
        )

    def order(row: int) -> tuple[bool, str, int]:
        folded = " ".join(words(titles[row]))
        return not folded.startswith(" ".join(words(text))), folded, row

    rows = [row for row, title in enumerate(titles) if asked and row not in removed and matches(title)]
    gone = [row for row in removed if row < len(titles)]
    assert TitleIndex.build(titles, gone).find(text, limit) == sorted(rows, key=order)[:limit]


@given(st.lists(TEXT, min_size=1, max_size=10), st.lists(TEXT, max_size=6), st.data())
def test_an_update_gives_the_index_that_is_built_anew(
    before: list[str], given: list[str], data: st.DataObject
) -> None:
    """Titles are changed and added, rows are removed and come back; the others are not read again."""
    rows = data.draw(st.lists(st.integers(0, len(before) - 1), unique=True, max_size=len(given)))
    changed = dict(zip(rows, given, strict=False))
    after = [changed.get(row, title) for row, title in enumerate(before)] + given[len(rows) :]
    gone, later_gone = (data.draw(st.sets(st.integers(0, len(t) - 1))) for t in (before, after))
    updated = TitleIndex.build(before, sorted(gone)).updated(after, changed, sorted(later_gone))
    assert stored(updated) == stored(TitleIndex.build(after, sorted(later_gone)))


def stored(index: TitleIndex) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        index.save(Path(name) / "titles")
        return {path.name: path.read_bytes() for path in (Path(name) / "titles").iterdir()}


def test_the_way_to_disk_and_back(tmp_path: Path) -> None:
    INDEX.save(tmp_path / "titles")
    again = TitleIndex.open(tmp_path / "titles", len(TITLES))
    assert stored(again) == stored(INDEX)
    assert all(again.find(text, 5) == INDEX.find(text, 5) for text in ("star", "a", "the w", ""))


@pytest.mark.parametrize("name", ["rows", "places", "first", "title_first", "term_first", "title_letters"])
def test_damaged_arrays_are_refused_by_name(tmp_path: Path, name: str) -> None:
    INDEX.save(tmp_path / "titles")
    path = tmp_path / "titles" / f"{name}.npy"
    values = np.load(path)
    values[len(values) // 2] = 255 if name == "title_letters" else len(TITLES) + 10**6
    np.save(path, values)
    with pytest.raises(ValueError, match=name.split("_")[0]):
        TitleIndex.open(tmp_path / "titles", len(TITLES))
