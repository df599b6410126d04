"""One request on its way through the engine: its beam, its keys and values, and what it needs next.

    pass 0:            the prompt                      → the beam of level 0
    pass j = 1 .. L−1: the codes that were just written, as further query positions of the one sequence; each
                       attends to the prompt, to its ancestors and to itself  → the beam of level j

Hypotheses that have ended early (spelled identifiers) are not fed: all that follows them is certain.

Early drop. A hypothesis only loses by its next code, so at the last level those that stand behind the `limit`-th
answer already found cannot give an answer any more. The pass of that level therefore takes the best hypotheses
first, and the others follow only where they still can win. The answers are those of the whole beam.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.allowed import Allowed
from index.vocabulary import IdentifierVocabulary
from server.engine.attention import KeyValues, Segment
from server.engine.beam import Beam, advance
from server.engine.contract import RankRequest

Codes = NDArray[np.int64]

SLACK = 0.7  # nats behind the limit-th hypothesis, within which all are fed at once at the last level
WORTH = 0.25  # share of the hypotheses that must be left, for a pass of their own to be risked


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
        self._paths = torch.zeros(1, 0, dtype=torch.long)  # [live, level], own slots and those of ancestors
        self._fed = 0  # how many of the live were fed
        self._found: list[NDArray[np.float32]] = []  # their log-probabilities, in parts

    @property
    def done(self) -> bool:
        return self.level == self._vocabulary.levels

    @property
    def next_rows(self) -> int:
        """How many tokens `feed` will give at most."""
        return len(self._live) if self.level else self._prompt - self.cached_tokens

    def feed(self) -> Feed:
        """The tokens whose hidden states `take` needs next; for a prompt it needs that of the last one."""
        begin = self._end
        if self.level == 0:
            ids = torch.as_tensor(self.request.prompt[begin:], dtype=torch.long)
            positions = torch.arange(begin, self._prompt)
            segment = Segment(self.memory, begin, len(ids))
        else:
            rows = slice(self._fed, self._fed_next())
            first = int(self._vocabulary.first_code[self.level - 1])
            ids = torch.from_numpy(self.beam.codes[self._live[rows]] + first)
            positions = torch.full((len(ids),), self._prompt + self.level - 1)
            segment = Segment(self.memory, begin, len(ids), self._prompt, self._paths[rows])
        self._end = segment.end
        return Feed(ids, positions, segment)

    def _fed_next(self) -> int:
        """How many of the live hypotheses will have been fed after the next pass."""
        count, limit = len(self._live), self.request.limit
        if self.level < self._vocabulary.levels - 1 or self._fed or limit >= len(self.beam.scores):
            return count
        near = self.beam.scores[self._live] >= self.beam.scores[limit - 1] - SLACK
        first = max(1, int(near.sum()))  # the beam is sorted
        return first if count - first >= WORTH * count else count

    def take(self, log_probs: NDArray[np.float32]) -> None:
        """Advance the beam by log p(code | hypothesis), float32 [hypotheses that were fed, codebook]."""
        self._found.append(log_probs)
        self._fed += len(log_probs)
        row = np.full(len(self.beam.nodes), -1)
        row[self._live[: self._fed]] = np.arange(self._fed)
        beam, row = self._without_unfed(row)
        ahead = advance(self.level, beam, np.concatenate(self._found), row, self.request.width, self.allowed)
        if self._fed < len(self._live) and not self._decided(ahead):
            return
        self.beam = ahead
        self.level += 1
        self._fed, self._found = 0, []
        self._live = np.arange(len(self.beam.nodes))
        if self._vocabulary.end is not None:
            self._live = np.flatnonzero(self.beam.codes != self._vocabulary.end)
        if self.done:
            return
        if not len(self._live):
            self._finish()
            return
        parent = torch.from_numpy(row[self.beam.parents[self._live]])
        itself = torch.arange(self._end, self._end + len(self._live)).unsqueeze(1)
        self._paths = torch.cat([self._paths[parent], itself], dim=1)

    def _without_unfed(self, row: Codes) -> tuple[Beam, Codes]:
        """The beam and its rows, without hypotheses that wait for a later pass."""
        kept = np.delete(np.arange(len(row)), self._live[self._fed :])
        return self.beam.at(kept), row[kept]

    def _decided(self, ahead: Beam) -> bool:
        """Whether none of the hypotheses that were not fed could be among the answers."""
        limit = self.request.limit
        best_left = self.beam.scores[self._live[self._fed]]
        return len(ahead.scores) >= limit and bool(ahead.scores[limit - 1] > best_left)

    def _finish(self) -> None:
        """Follow the ends of all hypotheses to their leaves."""
        nothing = np.zeros((0, self._vocabulary.codebook_sizes[-1]), np.float32)
        while not self.done:
            ended = np.full(len(self.beam.nodes), -1)
            self.beam = advance(self.level, self.beam, nothing, ended, self.request.width, self.allowed)
            self.level += 1
