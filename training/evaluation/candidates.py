"""Which items a target is ranked among.

The whole catalogue is what counts. A target among `negatives` sampled items is there for comparison with papers that
report it (GEMS among them, with 99): sampled metrics need not even order systems as full ones do (Krichene and Rendle,
KDD 2020).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from training.data.splits import Case
from training.errors import EvaluationError

WHOLE = "full catalogue"


@dataclass(frozen=True)
class Candidates:
    """exclude_history: never rank items of the history; a target among them is then an honest miss, since the server
    would not name it. negatives: so many items beside the target, drawn evenly from those that neither are it nor occur
    in the history; None for the whole catalogue. seed: of the draw. A person's are the same for every system and task.
    """

    exclude_history: bool = False
    negatives: int | None = None
    seed: int = 0

    @property
    def protocol(self) -> dict[str, Any]:
        """For records; ranks under other protocols are not comparable."""
        if self.negatives is None:
            return {"ranking": WHOLE, "exclude_history": self.exclude_history}
        return {
            "ranking": f"{self.negatives} sampled negatives",
            "exclude_history": self.exclude_history,
            "negatives": self.negatives,
            "negatives_seed": self.seed,
        }

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> Self:
        """Those of a record."""
        return cls(protocol["exclude_history"], protocol.get("negatives"), protocol.get("negatives_seed", 0))

    def excluded(self, case: Case) -> list[int]:
        """Rows of the catalogue that are not ranked, ascending."""
        return sorted({event.item for event in case.history}) if self.exclude_history else []

    def check(self, cases: Sequence[Case], items: int) -> None:
        """Raise `EvaluationError` where one of the cases leaves too few items, before anything is computed."""
        if self.negatives is not None and cases:
            self.rows(max(cases, key=lambda case: len(_known(case))), items)

    def rows(self, case: Case, items: int) -> NDArray[np.int64] | None:
        """Rows of the target and the negatives, ascending; None for the whole catalogue of so many items.

        Raises `EvaluationError` where there are too few items.
        """
        if self.negatives is None:
            return None
        pool = np.setdiff1d(np.arange(items), list(_known(case)))
        if len(pool) < self.negatives:
            raise EvaluationError(
                f"user {case.user_id!r} leaves {len(pool)} of {items} items to draw {self.negatives} negatives from; "
                "ask for fewer"
            )
        drawn = np.random.default_rng([self.seed, zlib.crc32(case.user_id.encode())])
        return np.sort(np.append(drawn.choice(pool, self.negatives, replace=False), case.target))


def _known(case: Case) -> set[int]:
    """Rows that are no negatives: those of the history, and the target."""
    return {case.target, *(event.item for event in case.history)}


EVERYTHING = Candidates()
