"""The beam search with random catalogues, widths and filters, compared with a search over plain tuples."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.beam import Beam, advance, best_items

Prefix = tuple[int, ...]


def random_case(seed: int) -> tuple[np.ndarray, set[int], set[int], Allowed, int]:
    """Draw identifiers (some shared), chosen and excluded rows, the allowed items, and a beam width."""
    rng = np.random.default_rng(seed)
    items, levels, codebook = rng.integers(1, 120), rng.integers(1, 5), rng.integers(1, 9)
    codes = rng.integers(0, codebook, (items, levels))
    trie = Trie.build(codes)
    every = set(range(items))
    chosen = every if rng.random() < 0.3 else set(np.flatnonzero(rng.random(items) < rng.random()).tolist())
    excluded = set(np.flatnonzero(rng.random(items) < rng.random() / 2).tolist())
    slots = None if chosen is every else SlotSet.of_members(trie.slot_of_item[sorted(chosen)], trie.items)
    return codes, chosen, excluded, Allowed.of(trie, slots, sorted(excluded)), int(rng.integers(1, 60))


def log_probs(prefix: Prefix, codebook: int, seed: int) -> np.ndarray:
    """Return random log-probabilities after a prefix; they are coarse, so that ties are common."""
    raw = np.random.default_rng([seed, *prefix]).integers(1, 6, codebook)
    return np.log(raw / raw.sum()).astype(np.float32)


def search(
    codes: np.ndarray, rows: set[int], width: int, codebook: int, seed: int, levels: int
) -> list[tuple[Prefix, float]]:
    """Run a beam search over the prefixes of the allowed items; the smaller identifier wins a tie."""
    beam: list[tuple[Prefix, float]] = [((), 0.0)]
    allowed = [tuple(codes[row].tolist()) for row in rows]
    for depth in range(levels):
        grown = [
            ((*prefix, code), score + float(log_probs(prefix, codebook, seed)[code]))
            for prefix, score in beam
            for code in {item[depth] for item in allowed if item[:depth] == prefix}
        ]
        beam = sorted(grown, key=lambda pair: (-pair[1], pair[0]))[:width]
    return beam


def check(seed: int) -> int:
    """Compare the two searches on a random case, to a random depth; return the number of items."""
    codes, chosen, excluded, allowed, width = random_case(seed)
    codebook = int(codes.max()) + 1
    levels = int(np.random.default_rng([seed, 1]).integers(1, codes.shape[1] + 1))
    beam, prefixes = Beam.root(), [()]
    for depth in range(levels):
        scores = np.stack([log_probs(prefix, codebook, seed) for prefix in prefixes])
        beam = advance(depth, beam, scores, np.arange(len(scores)), width, allowed)
        prefixes = [
            (*prefixes[p], c) for p, c in zip(beam.parents.tolist(), beam.codes.tolist(), strict=True)
        ]
        if not prefixes:
            break
    items, found = best_items(levels, beam, allowed, width) if prefixes else ([], [])
    left = chosen - excluded
    of_prefix = defaultdict(list)
    for row in sorted(left, key=lambda row: (*codes[row].tolist(), row)):  # the order of slots
        of_prefix[tuple(codes[row, :levels].tolist())].append(row)
    expected = [
        (row, score)
        for prefix, score in search(codes, left, width, codebook, seed, levels)
        for row in of_prefix[prefix]
    ]
    assert items == [row for row, _ in expected][:width]
    assert np.allclose(found, [score for _, score in expected][:width])
    more, _ = best_items(levels, beam, allowed, width, siblings=3) if prefixes else ([], [])
    assert more == [row for row, _ in expected][: width + 3]  # all below the best `width` nodes
    assert set(items) <= left
    assert len(set(items)) == len(items)
    return len(items)


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_beams_equal_a_plain_search(seed: int) -> None:
    check(seed)


@pytest.mark.slow
def test_a_hundred_thousand_results_equal_a_plain_search() -> None:
    results = 0

    @given(st.integers(0, 2**32))
    @settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def many(seed: int) -> None:
        nonlocal results
        results += check(seed)

    many()
    assert results >= 100_000
