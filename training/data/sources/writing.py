"""Writing systems of a log's texts, told by file and column: words in one never match words in another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.catalogue import Catalogue
from index.scripts import main_script, shares
from training.data.histories import Histories

LOOKED_AT = 2_000  # texts
MIXED = 0.2  # share of the letters from which on a second script is no exception


def notes_on_writing(
    catalogue: Catalogue, titles: str, histories: Histories, queries: Sequence[str]
) -> list[str]:
    """Return sentences on titles or queries in another script than Latin, in several, or not in the same.

    titles, queries: where they come from.
    """
    of_titles = shares(catalogue[row].title for row in _spread(len(catalogue)))
    of_queries = shares(histories.texts[place].as_py() for place in _spread(len(histories.texts)))
    asked = ", ".join(queries)
    notes = []
    for what, place, found in (("titles", titles, of_titles), ("queries", asked, of_queries)):
        common = {script: share for script, share in found.items() if share >= MIXED}
        if set(common) <= {"Latin"}:
            continue
        listed = ", ".join(f"{script} {share:.0%}" for script, share in common.items())
        remedy = (
            "; mixed, so that only an encoder of all of these languages compares them"
            if len(common) > 1
            else ""
        )
        notes.append(f"{what} ({place}) are written in {listed}{remedy}")
    one, other = main_script(of_titles), main_script(of_queries)
    if one and other and one != other:
        notes.append(
            f"queries ({asked}) are mostly {other}, titles ({titles}) mostly {one}: words of the one never match words "
            "of the other, so search by words finds little; an encoder of both languages compares them"
        )
    return notes


def _spread(number: int) -> list[int]:
    """Return at most `LOOKED_AT` numbers below `number`, evenly spread."""
    found: list[int] = np.unique(np.linspace(0, number - 1, min(number, LOOKED_AT)).astype(np.int64)).tolist()
    return found
