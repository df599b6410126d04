"""The trie against marisa-trie and brute force, over random identifier tables."""

from __future__ import annotations

from pathlib import Path

import marisa_trie
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from index.trie.trie import Trie, TrieError

ALPHABET = "".join(map(chr, range(0x100, 0x100 + 8)))  # one character a code
tables = st.tuples(st.integers(1, 60), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.int32, shape, elements=st.integers(0, 7))
)


def word(codes: NDArray[np.integer]) -> str:
    return "".join(ALPHABET[code] for code in codes)


@given(tables)
@settings(max_examples=150, deadline=None)
def test_walking_the_trie_finds_what_marisa_finds(codes: NDArray[np.int32]) -> None:
    trie = Trie.build(codes)
    oracle = marisa_trie.Trie([word(row) for row in codes])
    prefixes, nodes = [""], np.array([0])
    for depth in range(trie.levels):
        parent, child, code = trie.expand(depth, nodes)
        prefixes = [prefixes[p] + ALPHABET[c] for p, c in zip(parent, code, strict=True)]
        assert prefixes == sorted({key[: depth + 1] for key in list(oracle)})
        nodes = child
    assert trie.leaves == len(oracle)
    for leaf, prefix in enumerate(prefixes):
        assert trie.items_of(leaf).tolist() == [k for k, row in enumerate(codes) if word(row) == prefix]


@given(tables)
@settings(max_examples=100, deadline=None)
def test_codes_are_recovered(codes: NDArray[np.int32]) -> None:
    assert np.array_equal(Trie.build(codes).codes(), codes)


def test_expanding_a_batch_equals_expanding_one_by_one() -> None:
    trie = Trie.build(np.random.default_rng(0).integers(0, 20, (500, 3)))
    nodes = np.array([3, 0, 7, 7])
    parent, child, code = trie.expand(1, nodes)
    alone = [trie.expand(1, nodes[k : k + 1]) for k in range(4)]
    assert np.array_equal(child, np.concatenate([a[1] for a in alone]))
    assert np.array_equal(code, np.concatenate([a[2] for a in alone]))
    assert np.array_equal(parent, np.repeat(np.arange(4), [len(a[1]) for a in alone]))


def test_wide_codes_and_the_way_to_disk_and_back(tmp_path: Path) -> None:
    codes = np.random.default_rng(1).integers(0, 100_000, (300, 2))
    trie = Trie.build(codes)
    assert trie.code[0].dtype == np.uint32
    trie.save(tmp_path)
    assert np.array_equal(Trie.open(tmp_path).codes(), codes)


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    Trie.build(np.random.default_rng(1).integers(0, 5, (50, 3))).save(tmp_path)
    (tmp_path / "code_2.npy").unlink()
    with pytest.raises(TrieError, match="leaf arrays"):
        Trie.open(tmp_path)


@pytest.mark.parametrize(
    "codes", [np.zeros((0, 3), int), np.zeros((3, 0), int), np.array([[-1]]), np.array([[2**32]])]
)
def test_tables_that_are_no_identifiers_are_refused(codes: NDArray[np.int64]) -> None:
    with pytest.raises(TrieError):
        Trie.build(codes)
