"""The largest of many numbers, against a sort of all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.largest import largest


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30), st.integers(0, 35))
def test_they_are_the_first_of_a_sort_by_keys_and_place(pairs: list[tuple[int, int]], limit: int) -> None:
    keys = [np.array([pair[k] for pair in pairs], np.float64) for k in range(2)]
    wanted = sorted(range(len(pairs)), key=lambda place: (-pairs[place][0], -pairs[place][1], place))
    assert largest(keys, limit).tolist() == wanted[:limit]
    by_one = sorted(range(len(pairs)), key=lambda place: (-pairs[place][0], place))
    assert largest(keys[:1], limit).tolist() == by_one[:limit]
