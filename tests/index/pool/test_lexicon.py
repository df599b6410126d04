"""Terms in alphabetical order, and the near ones, compared with a comparison of all terms."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from index.pool.lexicon import LONG, LONGEST, NEAREST, PENALTY, SHORTEST, Lexicon

LETTERS = st.sampled_from("abcé食1")
TERMS = st.lists(st.text(LETTERS, min_size=1, max_size=12), unique=True, max_size=30).map(sorted)


def edits(a: str, b: str) -> int:
    """Return the optimal string alignment distance."""
    d = {(i, j): max(i, j) for i, j in product(range(len(a) + 1), range(len(b) + 1)) if not i * j}
    for i, j in product(range(1, len(a) + 1), range(1, len(b) + 1)):
        d[i, j] = min(d[i - 1, j] + 1, d[i, j - 1] + 1, d[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
        if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
            d[i, j] = min(d[i, j], d[i - 2, j - 2] + 1)
    return d[len(a), len(b)]


@given(TERMS, st.text(LETTERS, min_size=1, max_size=4))
def test_terms_and_ranges_are_found(terms: list[str], text: str) -> None:
    lexicon = Lexicon.of(terms)
    assert [lexicon.find(term) for term in terms] == list(range(len(terms)))
    assert [lexicon.term(place) for place in range(len(lexicon))] == terms
    assert lexicon.find(text) == (terms.index(text) if text in terms else None)
    begin, end = lexicon.begun(text)
    assert terms[begin:end] == [term for term in terms if term.startswith(text)]


@given(TERMS, st.text(LETTERS, min_size=1, max_size=12), st.booleans())
@example(["abcabcabc", "abcabcacc", "bbcabcabb"], "abcabcabb", False)
@settings(max_examples=500, deadline=None)
def test_near_terms_are_those_of_a_comparison_with_all(terms: list[str], word: str, unfinished: bool) -> None:
    terms = [term for term in terms if term != word]
    frequency = np.array([1 + (k * 7) % 5 for k in range(len(terms))])
    expected = {}
    for place, term in enumerate(terms):
        far = edits(word, term)
        has_digit = "1" in word + term
        if unfinished and term.startswith(word):
            expected[place] = PENALTY["beginning"]
        elif far == 1 and not has_digit:
            expected[place] = PENALTY[1]
        elif far == 2 and len(word) >= LONG and term[0] == word[0] and not has_digit:
            expected[place] = PENALTY[2]
    if not SHORTEST <= len(word) <= LONGEST:
        expected = {}
    best = sorted(expected, key=lambda place: (-expected[place], -frequency[place], place))[:NEAREST]
    found = Lexicon.of(terms).near(word, frequency, unfinished=unfinished)
    assert found == [(place, expected[place]) for place in best]
