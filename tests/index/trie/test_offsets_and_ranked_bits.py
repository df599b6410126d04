"""Offsets and ranked bits against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from index.trie.offsets import Offsets
from index.trie.ranked_bits import RankedBits


@given(arrays(np.int64, st.integers(1, 300), elements=st.integers(1, 400)))
@settings(max_examples=100, deadline=None)
def test_offsets_give_back_what_they_were_made_of(gaps: NDArray[np.int64]) -> None:
    values = np.cumsum(gaps) - gaps[0]
    offsets = Offsets.of(values)
    assert np.array_equal(offsets.values(), values)
    assert offsets.spans(len(values) - 1, int(values[-1]))
    assert not offsets.spans(len(values), int(values[-1]))
    assert not offsets.spans(len(values) - 1, -1)


@pytest.mark.parametrize(("gap", "width"), [(1, np.uint8), (3, np.uint8), (9, np.uint16), (5000, np.uint32)])
def test_offsets_are_as_wide_as_they_need_to_be(gap: int, width: type) -> None:
    offsets = Offsets.of(np.arange(1000) * gap)
    assert offsets.excess.dtype == width
    assert np.array_equal(offsets.values(), np.arange(1000) * gap)


@given(arrays(np.bool_, st.integers(1, 300)))
@settings(max_examples=100, deadline=None)
def test_ranks_are_counts_of_what_lies_before(member: NDArray[np.bool_]) -> None:
    bits = RankedBits.of(member)
    n = len(member)
    assert bits.rank(np.arange(n + 1)).tolist() == [0, *np.cumsum(member).tolist()]
    assert np.array_equal(bits.holds(np.arange(n)), member)
    assert bits.equals(RankedBits.of(member))
    assert not bits.equals(RankedBits.of(~member))
    assert not bits.equals(RankedBits(bits.words, bits.before + np.int32(1)))
