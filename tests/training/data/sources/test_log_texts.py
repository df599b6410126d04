"""Texts of published logs: Chinese words, numbers in place of words, and writing systems that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.logs import write_kuaisar, write_movielens_tags, write_qilin

from index.catalogue import Catalogue, Item
from index.pool.lexical import LexicalIndex
from index.words import words
from training.data.item_vectors import MINILM, advice_on_encoder
from training.data.sources.filters import Filters
from training.data.sources.kuaisar import kuaisar
from training.data.sources.movielens_tags import movielens_tags
from training.data.sources.qilin import qilin
from training.data.sources.word_numbers import words_of_numbers
from training.model.backbones import train_tokenizer

NUMBERS = st.lists(st.integers(0, 3_000_000), min_size=1, max_size=6)


def as_words(cell: str | None) -> str | None:
    found: str | None = pl.select(words_of_numbers(pl.lit(cell, pl.String))).item()
    return found


@given(NUMBERS)
@settings(deadline=None)
def test_every_number_is_one_word(numbers: list[int]) -> None:
    written = [f"{number}w" for number in numbers]
    for cell in (str(numbers), "\x18".join(map(str, numbers))):
        assert as_words(cell) == " ".join(written)
    assert words(" ".join(written)) == written


@pytest.mark.parametrize("cell", [None, "", "[]", "nan"])
def test_no_number_is_no_text(cell: str | None) -> None:
    assert as_words(cell) is None


def test_the_words_of_numbers_are_never_taken_for_others() -> None:
    """Neither a beginning nor a near number finds an item, as typed words would."""
    index = LexicalIndex.build(Catalogue([Item("a", "1234w 77w"), Item("b", "123w 5w")]))
    for query, found in (("1234w", [0]), ("123w", [1]), ("12w", []), ("1235w", []), ("77w 1234w", [0])):
        assert np.flatnonzero(index.match(query).all_words).tolist() == found
        assert bool(index.match(query).scores.any()) == bool(found)


def test_a_tokenizer_keeps_the_words_of_numbers_apart() -> None:
    texts = [" ".join(f"{number}w" for number in range(start, start + 8)) for start in range(3000)]
    tokenizer = train_tokenizer(texts, 2000)
    seen = {tuple(tokenizer(f"{number}w")["input_ids"]) for number in range(3000)}
    assert len(seen) == 3000
    for first, second in ((12, 3), (1, 23), (123, 4)):
        both = tokenizer(f"{first}w {second}w")["input_ids"]
        assert both == tokenizer(f"{first}w")["input_ids"] + tokenizer(f"{second}w")["input_ids"]


def test_two_chinese_characters_find_the_title_that_holds_them(tmp_path: Path) -> None:
    catalogue = qilin(write_qilin(tmp_path), Filters()).catalogue
    index = LexicalIndex.build(catalogue)

    def found(query: str) -> list[str]:
        return [catalogue[row].item_id for row in np.flatnonzero(index.match(query).all_words)]

    for query, expected in (
        ("早茶", ["10"]),
        ("西湖", ["13"]),
        ("徒步 西湖", ["13"]),
        ("烧卖", ["10"]),
        ("茶攻略", ["10"]),
    ):
        assert found(query) == expected
    assert found("湖西") == []  # the same characters in another order
    assert found("笔") == ["11"]


def test_titles_in_chinese_are_named_by_file_and_column(tmp_path: Path) -> None:
    dataset = qilin(write_qilin(tmp_path), Filters())
    (titles,) = [note for note in dataset.info.notes if note.startswith("titles")]
    assert titles == f"titles ({tmp_path / 'notes'}: note_title) are written in Han 100%"
    advice = advice_on_encoder(dataset.catalogue, MINILM)
    assert advice is not None
    assert "--identifiers.encoder" in advice
    assert "--identifiers.vectors" in advice
    assert advice_on_encoder(dataset.catalogue, "another encoder") is None


def test_mixed_languages_are_named(tmp_path: Path) -> None:
    source = write_movielens_tags(tmp_path)
    path = source / "movies.csv"
    path.write_text(path.read_text("utf-8").replace("Toy Story", "玩具总动员玩具总动员"), "utf-8")
    dataset = movielens_tags(source, Filters())
    (mixed,) = [note for note in dataset.info.notes if "mixed" in note]
    assert str(path) in mixed
    assert "title" in mixed
    path.write_text(
        path.read_text("utf-8").replace("Heat", "盗火线").replace("The", "").replace("No year", "无"), "utf-8"
    )
    (apart,) = [note for note in movielens_tags(source, Filters()).info.notes if note.startswith("queries (")]
    assert (
        f"queries ({source / 'tags.csv'}: tag) are mostly Latin, titles ({path}: title) mostly Han" in apart
    )


def test_latin_titles_need_no_note(tmp_path: Path) -> None:
    for dataset in (
        movielens_tags(write_movielens_tags(tmp_path / "films"), Filters()),
        kuaisar(write_kuaisar(tmp_path / "videos"), Filters()),
    ):
        assert not any("written" in note and "titles" in note for note in dataset.info.notes)
        assert advice_on_encoder(dataset.catalogue, MINILM) is None
