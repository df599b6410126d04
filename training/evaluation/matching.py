"""The share of search results that match a word of the query, which shows whether the model uses the query."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.catalogue import Catalogue
from index.words import query_words, terms
from training.data.splits import Case
from training.evaluation.ranking import RankedItems


def query_match_share(
    catalogue: Catalogue, cases: Sequence[Case], rankings: Sequence[RankedItems], k: int = 10
) -> float:
    """Return the share of the first `k` results whose text (`Item.text`) contains a word of the query."""
    terms_of = [frozenset(terms(text)) for text in catalogue.texts()]
    matches = []
    for case, ranking in zip(cases, rankings, strict=True):
        asked = query_words(case.query or "")
        matches += [any(word.is_in(terms_of[row]) for word in asked) for row in ranking.items[:k]]
    return float(np.mean(matches)) if matches else 0.0
