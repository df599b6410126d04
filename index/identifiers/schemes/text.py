"""Text identifiers: an item is spelled with the tokens of its title. The only new token is `<|end|>`.

    title tokens t1 t2 t3, L = 5:   t1 t2 t3 <|end|> <|end|>      (only the first `<|end|>` is written)
    more than L tokens:             t1 .. tL

If the spelling of a title is taken, a number is added as a person would write it: " (2)", " (3)", … It replaces the
last tokens if L leaves no room. Later items are spelled in the same way, so that no codebook is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from index.identifiers.identifiers import SPELLED, IdentifierError, Identifiers, ItemsToName, SchemeSettings
from index.sequence.plain_text import plain_tokens
from index.sequence.vocabulary import IdentifierVocabulary

NUMBER_LIMIT = 4096  # most items with one spelling

Tokenise = Callable[[str], Sequence[int]]


def levels(settings: SchemeSettings) -> int:
    """Return the most tokens of a spelling."""
    return settings.spelling


def identifiers(items: ItemsToName, settings: SchemeSettings) -> Identifiers:
    """Spell the items' titles; see `text_identifiers`."""
    vocabulary = IdentifierVocabulary.spelling(len(items.tokenizer), settings.spelling)
    tokenise = partial(plain_tokens, items.tokenizer, first_added=vocabulary.first_added)
    return text_identifiers(items.titles, tokenise, vocabulary)


def text_identifiers(
    titles: Sequence[str], tokenise: Tokenise, vocabulary: IdentifierVocabulary
) -> Identifiers:
    """Return the identifiers of a catalogue: codes int32 [N, L], one spelling for each item. See `spell`."""
    taken: set[tuple[int, ...]] = set()
    codes = np.array(
        [
            spell(title, tokenise, vocabulary, taken, f"item row {row}")
            for row, title in enumerate(titles, start=1)
        ],
        np.int32,
    )
    return Identifiers(SPELLED, codes, vocabulary.codebook_sizes)


def spell(
    title: str,
    tokenise: Tokenise,
    vocabulary: IdentifierVocabulary,
    taken: set[tuple[int, ...]],
    name: str,
) -> tuple[int, ...]:
    """Return the first free spelling of a title, L codes, and add it to `taken`.

    tokenise: turns a text into plain tokens, without added tokens.
    name: name of the item in messages.
    Raises `IdentifierError` for a title without any token, and if no number is left.
    """
    if vocabulary.end is None:
        raise IdentifierError("text identifiers need a vocabulary that spells")
    levels, end = vocabulary.levels, vocabulary.end
    tokens = list(tokenise(title))
    if not tokens:
        raise IdentifierError(f"{name} has the title {title!r}, which holds no token to spell it with")
    for number in range(1, NUMBER_LIMIT + 1):
        written = list(tokenise(f"{title} ({number})")) if number > 1 else tokens[:levels]
        if len(written) > levels:
            suffix = list(tokenise(f"({number})"))
            if len(suffix) >= levels:
                break
            written = tokens[: levels - len(suffix)] + suffix
        spelling = (*written, *[end] * (levels - len(written)))
        if spelling not in taken:
            taken.add(spelling)
            return spelling
    raise IdentifierError(
        f"{name}: more items begin as {title!r} does than {levels} tokens can tell apart; use more of them, or "
        "semantic identifiers"
    )
