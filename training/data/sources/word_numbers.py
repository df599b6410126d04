"""Texts whose words were replaced by numbers: each number becomes a word of its own.

The word of 20 is `20w`. The lexical index takes it for one word and never for another one that begins alike, as `w2`
would be for `w20`, and it never corrects words with digits. A tokenizer writes it as its number and the letter.
"""

from __future__ import annotations

import polars as pl

NOTE = (
    "words are numbers in this log, written as '20w': no encoder of texts knows what they mean; codes that follow "
    "behaviour (--identifiers.embeddings alphafuse, --identifiers.quantiser letter) or vectors of your own "
    "(--identifiers.vectors) say more"
)


def words_of_numbers(column: pl.Expr) -> pl.Expr:
    """Return a column of texts: "[20, 34, 3]", or the same with any other separators, gives "20w 34w 3w".

    Texts without a number, and null, give null.
    """
    numbers = column.str.extract_all(r"\d+")
    return pl.when(numbers.list.len() > 0).then(
        column.str.replace_all(r"[^\d]+", " ").str.strip_chars(" ").str.replace_all(r"(\d+)", "${1}w")
    )
