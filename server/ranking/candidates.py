"""The candidates of a request, read with the items of one index version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from index.catalogue import Catalogue


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidates in the order in which they were sent.

    rows: catalogue rows of the known ones; None if the request names no candidates, so that every item is one.
    unknown: ids that the catalogue does not hold.
    """

    rows: list[int] | None
    unknown: list[str]

    @classmethod
    def read(cls, item_ids: Sequence[str] | None, catalogue: Catalogue) -> Candidates:
        """Look up candidates in the catalogue."""
        if item_ids is None:
            return cls(None, [])
        rows = {item_id: catalogue.row(item_id) for item_id in item_ids}
        return cls(
            [row for row in rows.values() if row is not None],
            [item_id for item_id in item_ids if rows[item_id] is None],
        )
