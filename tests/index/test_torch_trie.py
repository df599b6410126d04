"""The trie on a device against the NumPy one, which has its own oracles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor

from index.allowed import Allowed, SlotSet
from index.torch_trie import TorchAllowed, TorchTrie
from index.trie import Trie

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
tables = st.tuples(st.integers(1, 200), st.integers(1, 4), st.sampled_from([3, 40, 70_000])).flatmap(
    lambda shape: arrays(np.int64, shape[:2], elements=st.integers(0, shape[2]))
)


def equal(ours: Sequence[Tensor], theirs: Sequence[NDArray[np.generic]]) -> bool:
    return all(
        np.array_equal(mine.cpu().numpy(), other) and mine.dtype in (torch.int64, torch.bool)
        for mine, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("device", DEVICES)
@given(tables, st.data())
@settings(max_examples=100, deadline=None)
def test_a_trie_on_a_device_answers_as_the_one_in_numpy(
    device: str, codes: NDArray[np.int64], data: st.DataObject
) -> None:
    trie = Trie.build(codes)
    there = TorchTrie.of(trie, device)
    depth = data.draw(st.integers(0, trie.levels - 1))
    count = 1 if depth == 0 else len(trie.code[depth - 1])
    nodes = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=12)), np.int64)
    moved = torch.from_numpy(nodes).to(device)
    assert equal(there.expand(depth, moved), trie.expand(depth, nodes))
    assert equal(there.slots(depth, moved), trie.slots(depth, nodes))
    slots = np.arange(trie.items)
    assert equal(
        [there.node_at(depth + 1, torch.from_numpy(slots).to(device))], [trie.node_at(depth + 1, slots)]
    )
    rows = st.sets(st.integers(0, len(codes) - 1))
    chosen = data.draw(st.none() | rows)
    picked = None if chosen is None else SlotSet.of_members(trie.slot_of_item[sorted(chosen)], trie.items)
    allowed = Allowed.of(trie, picked, [*data.draw(rows)])
    allowed_there = TorchAllowed.of(there, allowed)
    assert equal([allowed_there.alive(depth, moved)], [allowed.alive(depth, nodes)])
    assert equal(allowed_there.expand(depth, moved), allowed.expand(depth, nodes))


def test_walking_a_stored_trie_on_a_device_finds_every_identifier(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 3000, (20_000, 3))
    codes[:, 0] %= 7  # long ranges of edges, whose offsets take more than a byte
    Trie.build(codes).save(tmp_path)
    trie = TorchTrie.of(Trie.open(tmp_path))
    nodes = torch.zeros(1, dtype=torch.long)
    prefixes = torch.zeros(1, 0, dtype=torch.long)
    for depth in range(3):
        parent, nodes, code = trie.expand(depth, nodes)
        prefixes = torch.cat([prefixes[parent], code[:, None]], dim=1)
    assert np.array_equal(prefixes.numpy(), np.unique(codes, axis=0))
