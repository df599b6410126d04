"""The cases that a fusion is fitted to: the validation cases, and queries that people type without leaving a log.

    logged      the validation cases
    title       the title of the item that was taken, in lower case or as it is
    attribute   its id, or its value of a search attribute, such as an article number
    nonsense    letters of the catalogue in random order; nothing fits

The item of a validation case is the target of the first three kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from index.catalogue import Catalogue
from index.sequence.events import Task
from index.words import words
from training.data.splits import Case

TITLES, ATTRIBUTES, NONSENSE = 0.2, 0.1, 0.1  # cases of each kind, as a share of the logged ones
LETTERS = 3, 9  # of a nonsense word


@dataclass(frozen=True, slots=True)
class FitCase:
    """A case and how it is ranked.

    kind: see above.
    target: catalogue row; None if nothing fits.
    """

    kind: str
    case: Case
    target: int | None


def fit_cases(
    task: Task, cases: Sequence[Case], catalogue: Catalogue, attributes: Sequence[str], seed: int
) -> list[FitCase]:
    """Return the cases of a task. attributes: names of the search attributes."""
    found = [FitCase("logged", case, case.target) for case in cases]
    if task is Task.RECOMMENDATION:
        return found
    rng = np.random.default_rng([seed, len(cases)])
    letters = _letters(catalogue)

    def some(share: float) -> list[Case]:
        count = min(len(cases), max(20, round(share * len(cases))))
        return [cases[k] for k in rng.permutation(len(cases))[:count]]

    for case in some(TITLES):
        title = catalogue[case.target].title
        if words(title):
            query = title.lower() if rng.random() < 0.5 else title
            found.append(FitCase("title", replace(case, query=query), case.target))
    for name in (None, *attributes):  # None: the id
        for case in some(ATTRIBUTES / (1 + len(attributes))):
            item = catalogue[case.target]
            value = item.item_id if name is None else item.attributes.get(name)
            if isinstance(value, str | int | float) and words(str(value)):
                found.append(FitCase("attribute", replace(case, query=str(value)), case.target))
    for case in some(NONSENSE):
        query = " ".join(
            "".join(rng.choice(letters, rng.integers(*LETTERS))) for _ in range(rng.integers(1, 4))
        )
        found.append(FitCase("nonsense", replace(case, query=query), None))
    return found


def _letters(catalogue: Catalogue) -> list[str]:
    """Return the letters of the first titles, each once."""
    letters = {letter for item in islice(catalogue, 1000) for word in words(item.title) for letter in word}
    return sorted(letter for letter in letters if letter.isalpha()) or ["x"]
