"""Text identifiers: an item is spelled by the title's own tokens, with no more than `<|end|>` to learn anew.

    title tokens t1 t2 t3, L = 5:   t1 t2 t3 <|end|> <|end|>      (of the ends only the first is written)
    more than L tokens:             t1 .. tL

A title that is taken gets a number as a person would write it, " (2)", " (3)", …, in place of its last tokens
where L leaves no room. Items that come later are spelled in the same way, so that no codebook is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from index.identifiers.identifiers import SPELLED, IdentifierError, Identifiers, ItemsToName, SchemeSettings
from index.sequence.plain_text import plain_tokens
from index.sequence.vocabulary import IdentifierVocabulary

NUMBER_LIMIT = 4096  # items of one spelling

Tokenise = Callable[[str], Sequence[int]]


def levels(settings: SchemeSettings) -> int:
    """Return the tokens of a spelling at most."""
    return settings.spelling


def identifiers(items: ItemsToName, settings: SchemeSettings) -> Identifiers:
    """Spell the items' titles; see `text_identifiers`."""
    vocabulary = IdentifierVocabulary.spelling(len(items.tokenizer), settings.spelling)
    tokenise = partial(plain_tokens, items.tokenizer, first_added=vocabulary.first_added)
    return text_identifiers(items.titles, tokenise, vocabulary)


def text_identifiers(
    titles: Sequence[str], tokenise: Tokenise, vocabulary: IdentifierVocabulary
) -> Identifiers:
    """Identifiers of a catalogue: codes int32 [N, L], one spelling an item. See `spell`."""
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
    """The first free spelling of a title, L codes, which is added to the `taken` ones.

    tokenise: a text to plain tokens, none of them added. name: of the item, for messages.
    Raises `IdentifierError` for a title without any token, and where no number is left.
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
