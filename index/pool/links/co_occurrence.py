"""Co-occurrence: how much the items that a person took speak for another one, by what people took together.

    s_j = Σ_i w_ij       over the last `LAST_ITEMS` items i of a history, each once

The weights are those of a regression (`training.co_occurrence`): unlike a count of what was taken together, w_ij is
what item i says about j beyond what the others say, and may be negative. The order of a history plays no part, which
`index.pool.links.transitions` adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from index.pool.links.item_links import Followed, ItemLinks, Rows

LAST_ITEMS = 50


@dataclass(frozen=True, eq=False)
class CoOccurrence(ItemLinks):
    """The links of items to what people took, too."""

    FACTORS: ClassVar[NDArray[np.float64]] = np.ones(LAST_ITEMS)

    def followed(self, history: Rows) -> Followed:
        """Return every single link of a history's items, see `ItemLinks`. An item that was taken again counts once."""
        latest_first = np.asarray(history, np.int64)[::-1].tolist()
        return super().followed(list(dict.fromkeys(latest_first))[:LAST_ITEMS][::-1])
