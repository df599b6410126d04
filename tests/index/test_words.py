"""Words of many languages, as people type them; the same rule for items and queries."""

from __future__ import annotations

import unicodedata

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from index.words import fold, holds_all, is_blank, query_words, spaced, terms, words

TEXT = st.text(max_size=40) | st.text(
    st.sampled_from("aBé1２.-/_, 'パﾊﾟ食がก้นहिёйאָ\u0301\u3099\u200b½™"), max_size=20
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Amélie (2001)", "amelie 2001"),
        ("Schindler's, Schindler’s, Schindlerʼs", "schindlers schindlers schindlers"),
        ("Straße nach Süden", "strasse nach suden"),
        ("ØRE łódź Đồng Æon Œuvre Þór Ǿ", "ore lodz dong aeon oeuvre thor o"),
        ("İSTANBUL Isparta ısparta", "istanbul isparta isparta"),
        ("ΟΔΥΣΣΕΎΣ Ὀδυσσεύς", "οδυσσευσ οδυσσευσ"),
        ("Ёлка за́мок йод Київ", "елка замок йод київ"),
        ("ＡＢＣ１２３ ﬁne Ⅳ", "abc123 fine iv"),
        ("كِتَابٌ كتـــاب أحمد فارسی ٣٫٥", "كتاب كتاب احمد فارسي 3.5"),
        ('שָׁלוֹם צה״ל צה"ל', "שלום צהל צהל"),
        ("हिन्दी किताब १२", "हिन्दी किताब 12"),
        ("தமிழ் நூல்", "தமிழ் நூல்"),
        ("한국어 책", "한국어 책"),
        ("می‌خواهم", "ميخواهم"),
        ("co\u00adoperate ca\u0301fe", "cooperate cafe"),
        ("Lego™ 8½ m²", "lego 8 1 2 m2"),
        ("3.5 1,000 v2.0 rock.pop red,blue a_b", "3.5 1,000 v2.0 rock pop red blue a b"),
        ("E.T. and J.R.R. Tolkien", "et and jrr tolkien"),
        ("WD-40 AB-1234/5 B00X4WHP5E", "wd 40 ab 1234 5 b00x4whp5e"),
        ("食パン", "食パ パン"),
        ("ﾊﾟﾝ", "パン"),
        ("侍", "侍"),
        ("2リットル iPhone15ケース", "2 リッ ット トル iphone15 ケー ース"),
        ("น้ำมัน", "น้ํา ามั มัน"),
        ("", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert " ".join(words(text)) == unicodedata.normalize("NFC", expected)


@pytest.mark.parametrize(
    ("query", "item"),
    [
        ("wd40", "WD-40"), ("WD-40", "wd40"), ("wd 40", "WD40"), ("wd40", "wd 40"), ("wd 40", "WD-40"),
        ("AB12345", "AB-1234/5"), ("ab-1234/5", "AB12345"), ("1234", "AB-1234/5"),
        ("100ml", "100 ml"), ("100 ml", "100ML"), ("3.5 inch", "3.5inch"), ("iphone 15", "iPhone15 Pro"),
        ("9783161484100", "978-3-16-148410-0"), ("1000", "1,000 pieces"), ("1,000", "1000 pieces"),
        ("spiderman", "Spider-Man"), ("t-shirt", "tshirt"), ("et", "E.T."), ("amour fou", "Fou Amour"),
        ("パン", "食パン"), ("侍", "七人の侍"), ("ﾊﾟﾝ", "パン粉"), ("น้ำ", "น้ำมัน"),
    ],
)  # fmt: skip
def test_a_query_finds(query: str, item: str) -> None:
    assert holds_all(terms(item), query)


@pytest.mark.parametrize(
    ("query", "item"),
    [
        ("パン", "ハンカチ"), ("パン", "バンド"), ("ハン", "パン"), ("35", "3.5"), ("12", "1/2"), ("247", "24/7"),
        ("йод", "иод"), ("कि", "का"), ("star wars", "Star Trek"), ("wd 41", "WD40"), ("mp4", "MP 3"),
    ],
)  # fmt: skip
def test_a_query_does_not_find(query: str, item: str) -> None:
    assert not holds_all(terms(item), query)


@pytest.mark.parametrize(
    "query", ["", "  ", "?!", "\u200b\u2060", "\u00ad", "❤️", "👩‍🚀", "'", "\u0301", "- / _", "™"]
)
def test_a_query_without_letters_and_digits_is_blank(query: str) -> None:
    assert is_blank(query)
    assert query_words(query) == []


@given(TEXT)
@example("か\ufe00\u3099")
def test_folding_twice_changes_nothing(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@given(TEXT, TEXT)
def test_an_item_is_found_by_every_part_of_its_own_text(text: str, other: str) -> None:
    found = terms(f"{text} {other}")
    assert set(words(text)) <= set(found)
    assert holds_all(found, text)
    assert holds_all(found, other)


@given(TEXT)
def test_words_of_a_query_are_the_words_of_the_text(text: str) -> None:
    assert [word.text for word in query_words(text)] == list(dict.fromkeys(words(text)))
    assert all(word.spellings[0] == (word.text,) for word in query_words(text))
    assert is_blank(text) == (not words(text))


@given(TEXT, st.integers(0, 20), st.integers(1, 8))
@example("西湖 湖边 边 边上", 0, 8)
def test_words_as_a_person_would_type_them(text: str, first: int, length: int) -> None:
    found = words(text)[first : first + length]
    assert words(spaced(found)) == found


def test_languages_without_spaces_are_typed_without() -> None:
    assert spaced(words("杭州西湖 徒步 trail 3.5")) == "杭州西湖 徒步 trail 3.5"
    assert spaced(words("ﾊﾟﾝと น้ำมัน")) == unicodedata.normalize("NFKC", "パンと น้ำมัน")
    assert spaced([]) == ""


@given(st.text(st.characters(codec="ascii"), max_size=40))
def test_ascii_has_the_same_words_in_company_of_other_letters(text: str) -> None:
    assert words(f"{text} ή") == [*words(text), "η"]
    assert terms(f"{text} ή") == [*terms(text), "η"]


CHARACTERS = [*"abzÉßøжйЁअ١한글ღა !", "कि", "द्", "\u0b95\u0bca", "e\u0301"]


@given(st.lists(st.sampled_from(CHARACTERS), max_size=30))
def test_letters_and_digits_of_languages_with_spaces_are_cut_as_by_uax_29(characters: list[str]) -> None:
    text = "".join(characters)
    cut = regex.split(r"(?V1w)\b", text)
    assert words(text) == [fold(part) for part in cut if any(map(str.isalnum, part))]


@given(
    st.text(st.sampled_from("食パン東京がぎกน"), min_size=2, max_size=12),
    st.integers(0, 10),
    st.integers(1, 4),
)
def test_a_piece_of_a_text_without_spaces_finds_it(text: str, start: int, length: int) -> None:
    piece = text[start : start + length]
    assert holds_all(terms(text), piece)
