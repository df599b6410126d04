"""The candidates of an evaluation: the items that a target is ranked among.

The standard is the whole catalogue. A ranking of the target among sampled items exists for comparison with papers that
report it (GEMS does, with 99 items). Sampled metrics can even rank systems in another order than full ones (Krichene
and Rendle, KDD 2020).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from training.data.splits import Case, takes_again
from training.errors import EvaluationError

WHOLE = "full catalogue"


@dataclass(frozen=True)
class Candidates:
    """The rule that chooses candidates.

    exclude_history: never rank items of the history. A target among them is a miss, because the server would not return
    it.
    negatives: number of sampled items in addition to the target; None: the whole catalogue. They are drawn uniformly
    from the items that are neither the target nor in the history.
    seed: seed of the draw. The negatives of a user are the same for every system and task.
    """

    exclude_history: bool = False
    negatives: int | None = None
    seed: int = 0

    @property
    def protocol(self) -> dict[str, Any]:
        """The rule as a part of the protocol in records. Ranks of different protocols are not comparable."""
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
        """Return the rule from the protocol of a record."""
        return cls(protocol["exclude_history"], protocol.get("negatives"), protocol.get("negatives_seed", 0))

    def excluded(self, case: Case) -> list[int]:
        """Return the catalogue rows that are not ranked, ascending."""
        return sorted({event.item for event in case.history}) if self.exclude_history else []

    def check(self, cases: Sequence[Case], items: int) -> None:
        """Raise `EvaluationError` if a case leaves too few items to sample, before anything is computed.

        items: size of the catalogue.
        """
        if self.negatives is not None and cases:
            self.rows(max(cases, key=lambda case: len(_known(case))), items)

    def rows(self, case: Case, items: int) -> NDArray[np.int64] | None:
        """Return the catalogue rows of the target and the negatives, int64, ascending; None for the whole catalogue.

        items: size of the catalogue.
        Raises `EvaluationError` if there are too few items to sample.
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


def excludes_history(asked: bool | None, validation: Sequence[Case]) -> bool:
    """Return whether items of the history are left out: as it was asked for, or as the log says if it was not.

    Where no held-out item had been taken before, as with films, an answer from the history is a wasted place.
    """
    return not takes_again(validation) if asked is None else asked


def _known(case: Case) -> set[int]:
    """Return the rows that cannot be negatives: the history and the target."""
    return {case.target, *(event.item for event in case.history)}


EVERYTHING = Candidates()
