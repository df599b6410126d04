"""One request on its way through the engine: its beam, its keys and values, and what it needs next.

    pass 0:            the prompt                      → the beam of level 0
    pass j = 1 .. L−1: the codes that were just written, as further query positions of the one sequence; each
                       attends to the prompt, to its ancestors and to itself  → the beam of level j

Hypotheses that have ended early (spelled identifiers) are not fed: all that follows them is certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.allowed import Allowed
from index.vocabulary import IdentifierVocabulary
from server.engine.attention import KeyValues, Segment, causal_mask
from server.engine.beam import Beam, advance
from server.engine.contract import RankRequest

Codes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Feed:
    """What a request adds to a forward pass: token ids and positions, int64 [rows], and whose rows they are."""

    ids: Tensor
    positions: Tensor
    segment: Segment


class Search:
    """Beam search for one request. Alternate `feed` and `take` until `done`.

    known: keys and values of the first tokens of the prompt, [layers, 2, kv heads, n, d]; n < tokens.
    """

    def __init__(
        self,
        request: RankRequest,
        allowed: Allowed,
        vocabulary: IdentifierVocabulary,
        layers: int,
        known: Tensor | None = None,
    ) -> None:
        self.request = request
        self.allowed = allowed
        self.beam = Beam.root()
        self.level = 0
        self.cached_tokens = 0 if known is None else known.shape[3]
        self._vocabulary = vocabulary
        self._prompt = len(request.prompt)
        # A level cannot hold more hypotheses than the trie has nodes there.
        fed = sum(min(request.width, len(code)) for code in allowed.trie.code[:-1])
        self.memory = KeyValues(layers, self._prompt + fed, known)
        self._end = self.cached_tokens  # slots that are filled
        self._live: Codes = np.zeros(1, np.int64)  # positions in the beam of the hypotheses that are fed
        self._ancestors = torch.zeros(1, 0, dtype=torch.bool)  # [fed, slots behind the prompt]

    @property
    def done(self) -> bool:
        return self.level == self._vocabulary.levels

    def feed(self) -> Feed:
        """The tokens whose hidden states `take` needs next; for a prompt it needs that of the last one."""
        begin = self._end
        if self.level == 0:
            ids = torch.as_tensor(self.request.prompt[begin:], dtype=torch.long)
            mask = causal_mask(begin, len(ids)) if begin else None
            positions = torch.arange(begin, self._prompt)
        else:
            first = int(self._vocabulary.first_code[self.level - 1])
            ids = torch.from_numpy(self.beam.codes[self._live] + first)
            prompt = torch.ones(len(ids), self._prompt, dtype=torch.bool)
            mask = torch.cat([prompt, self._ancestors], dim=1)
            positions = torch.full((len(ids),), self._prompt + self.level - 1)
        self._end = begin + len(ids)
        return Feed(ids, positions, Segment(self.memory, begin, len(ids), mask))

    def take(self, log_probs: NDArray[np.float32]) -> None:
        """Advance the beam by log p(code | hypothesis), float32 [hypotheses that were fed, codebook]."""
        row = np.full(len(self.beam.nodes), -1)
        row[self._live] = np.arange(len(self._live))
        self.beam = advance(self.level, self.beam, log_probs, row, self.request.width, self.allowed)
        self.level += 1
        self._live = np.arange(len(self.beam.nodes))
        if self._vocabulary.end is not None:
            self._live = np.flatnonzero(self.beam.codes != self._vocabulary.end)
        if self.done:
            return
        if not len(self._live):
            self._finish()
            return
        parent = torch.from_numpy(row[self.beam.parents[self._live]])
        itself = torch.eye(len(self._live), dtype=torch.bool)
        self._ancestors = torch.cat([self._ancestors[parent], itself], dim=1)

    def _finish(self) -> None:
        """Follow the ends of all hypotheses to their leaves."""
        nothing = np.zeros((0, self._vocabulary.codebook_sizes[-1]), np.float32)
        while not self.done:
            ended = np.full(len(self.beam.nodes), -1)
            self.beam = advance(self.level, self.beam, nothing, ended, self.request.width, self.allowed)
            self.level += 1
