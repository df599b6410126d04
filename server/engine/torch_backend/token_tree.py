"""The prefixes of identifiers that the model reads for one request: a tree of tokens behind the prompt.

A prefix is a node of the trie. However many want it (the beam, its look-ahead, the pool), the model reads its last code
once: as a query position that attends to the prompt, to the codes before it and to itself (tree attention).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.trie import Trie
from server.engine.torch_backend.attention import KeyValues, Segment
from server.engine.torch_backend.forward_input import ForwardInput

Ints = NDArray[np.int64]


@dataclass(eq=False, slots=True)
class _Prefixes:
    """Prefixes of one depth, in the order in which they were added.

    nodes: trie nodes, int64 [n]. slots: slots of the keys and values of all their codes, int64 [n, depth].
    hidden: hidden states of their last codes, [n, d]; those of the next pass are not there yet.
    """

    nodes: Ints
    slots: Ints
    hidden: Tensor | None = None


class TokenTree:
    """The tree of one request. Alternate `add`, `next_input` and `take`; the root, depth 0, is there from the start.

    trie, vocabulary: of the identifiers.
    key_values: where keys and values go; its first `prompt` slots hold the prompt.
    """

    def __init__(
        self, trie: Trie, vocabulary: IdentifierVocabulary, key_values: KeyValues, prompt: int
    ) -> None:
        self._trie = trie
        self._vocabulary = vocabulary
        self._key_values = key_values
        self._prompt = prompt
        self._free_slot = prompt
        nothing = np.zeros(0, np.int64)
        self._at = [_Prefixes(nothing, nothing.reshape(0, depth)) for depth in range(trie.levels)]
        self._at[0] = _Prefixes(np.zeros(1, np.int64), np.zeros((1, 0), np.int64))
        self._next: list[
            tuple[int, Ints, Ints]
        ] = []  # depth, codes and slots of the next pass, in order of slots

    @property
    def next_rows(self) -> int:
        """Number of tokens that `next_input` will return."""
        return sum(len(codes) for _, codes, _ in self._next)

    def rows(self, depth: int, nodes: Ints) -> Ints:
        """Return the places of nodes among the prefixes of a depth, int64, same shape; −1 for those not there."""
        return places(nodes, self._at[depth].nodes)

    def hidden(self, depth: int, rows: Ints) -> Tensor:
        """Return the hidden states of prefixes, [n, d]. rows: their places, as `rows` returns them."""
        hidden = self._at[depth].hidden
        assert hidden is not None  # they were taken
        return hidden[torch.from_numpy(rows)]

    def add(self, depth: int, nodes: Ints, parents: Ints) -> None:
        """Have the next pass read these nodes, unless they are in the tree.

        nodes: distinct trie nodes of a depth of at least 1.
        parents: the node above each, which is in the tree.
        """
        known, above = self._at[depth], self._at[depth - 1]
        new = self.rows(depth, nodes) < 0
        if not new.any():
            return
        nodes, parents = nodes[new], parents[new]
        itself = np.arange(self._free_slot, self._free_slot + len(nodes))
        self._free_slot += len(nodes)
        slots = np.column_stack([above.slots[places(parents, above.nodes)], itself])
        known.nodes = np.concatenate([known.nodes, nodes])
        known.slots = np.concatenate([known.slots, slots])
        self._next.append((depth, self._trie.code[depth - 1][nodes].astype(np.int64), slots))

    def next_input(self) -> ForwardInput | None:
        """Return the tokens of the next pass; None if there are none."""
        if not self._next:
            return None
        depths = np.concatenate([np.full(len(codes), depth) for depth, codes, _ in self._next])
        ids = np.concatenate(
            [codes + self._vocabulary.first_code[depth - 1] for depth, codes, _ in self._next]
        )
        own = np.full((len(ids), depths.max()), -1)
        begin = 0
        for depth, codes, slots in self._next:
            own[begin : begin + len(codes), :depth] = slots
            begin += len(codes)
        first = self._free_slot - len(ids)
        return ForwardInput(
            torch.from_numpy(ids),
            torch.from_numpy(self._prompt + depths - 1),
            Segment(self._key_values, first, len(ids), self._prompt, torch.from_numpy(own)),
            {
                depth: torch.from_numpy(np.flatnonzero(depths == depth))
                for depth in dict.fromkeys(depth for depth, _, _ in self._next)
            },
        )

    def take(self, hidden: Mapping[int, Tensor]) -> None:
        """Take the results of a pass: the states of the rows `ForwardInput.last`, [n, d], by depth."""
        for depth, states in hidden.items():
            known = self._at[depth]
            known.hidden = states if known.hidden is None else torch.cat([known.hidden, states])
        self._next = []


def places(wanted: Ints, known: Ints) -> Ints:
    """Return the place in `known` of each number of `wanted`, int64, same shape; −1 for numbers that are not there.

    known: distinct numbers, in any order.
    """
    if not len(known) or not len(wanted):
        return np.full(wanted.shape, -1)
    order = np.argsort(known)
    at = order[np.minimum(np.searchsorted(known, wanted, sorter=order), len(order) - 1)]
    return np.where(known[at] == wanted, at, -1)
