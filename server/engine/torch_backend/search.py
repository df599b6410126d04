"""The search of one request: its beam, its keys and values, and the tokens that it needs next.

    pass 0:  the prompt                                → the beam of level 0
    then:    the codes that were just written, as further query positions of the one sequence; each attends to the
             prompt, to its ancestors and to itself    → the beam of the next level, L − 1 times

Hypotheses that have ended early (spelled identifiers) need no pass: all that follows them is certain.

Look-ahead (speculative expansion). Deep in a trie most nodes have one child, so that the candidates for the next beam
are known before it is chosen. If the children of all hypotheses exceed the beam by a few at most, they are computed in
the same pass, and so are their children: a pass reads all weights, however few its rows are. (SpecInfer, arXiv
2305.09781, verifies drafts of a tree in this way; here the trie leaves nothing to guess, so that nothing is refused.)

Early drop. A hypothesis can only lose by its next code, so that at the last level those behind the `limit`-th answer
found so far cannot give an answer any more. The pass of that level therefore takes the best hypotheses first; the
others follow only if they still can win. The answers are those of the whole beam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed
from server.engine.beam import Beam, advance
from server.engine.contract import ENGINE_STAGES, RankRequest
from server.engine.torch_backend.attention import KeyValues, Segment

Codes = NDArray[np.int64]
LogProbs = Callable[[Tensor, int], NDArray[np.float32]]  # hidden states [n, d], level → [n, codebook]

# Rows of a pass that may be computed in vain: together they cost about as much as a pass without rows.
SPARE_ROWS = 24
FULL_PASS_ROWS = 512  # more rows would take as long in a pass of their own
SLACK = 0.7  # nats behind the limit-th hypothesis within which all are computed at once at the last level
WORTH = 0.25  # share of the hypotheses that must be left over to make a second pass worth its risk


@dataclass(frozen=True, eq=False)
class ForwardInput:
    """Tokens that a request adds to a forward pass.

    ids, positions: int64 [rows].
    segment: the slots of the rows, and what they attend to.
    last: rows that are the last tokens of hypotheses, by level; level 0 has the last token of the prompt.
    """

    ids: Tensor
    positions: Tensor
    segment: Segment
    last: Mapping[int, slice]


@dataclass(frozen=True, eq=False)
class _Hypotheses:
    """Some hypotheses of one level.

    nodes: trie nodes, int64 [n].
    codes: codes that were written last, int64 [n].
    slots: slots of the keys and values of all their codes, int64 [n, level].
    """

    level: int
    nodes: Codes
    codes: Codes
    slots: Codes


@dataclass(frozen=True, eq=False)
class _Computed:
    """Hypotheses of one level whose last codes went through the model.

    nodes, slots: as in `_Hypotheses`.
    hidden: hidden states of their last codes, [n, d].
    """

    nodes: Codes
    slots: Codes
    hidden: Tensor

    def rows(self, nodes: Codes) -> Codes:
        """Return the places of these nodes among the hypotheses, int64; −1 for nodes that are not there."""
        order = np.argsort(self.nodes)
        at = order[np.searchsorted(self.nodes, nodes, sorter=order).clip(max=len(order) - 1)]
        return np.where(self.nodes[at] == nodes, at, -1)

    def and_others(self, others: _Computed) -> _Computed:
        return _Computed(
            np.concatenate([self.nodes, others.nodes]),
            np.concatenate([self.slots, others.slots]),
            torch.cat([self.hidden, others.hidden]),
        )


class Search:
    """Beam search for one request. Alternate `next_inputs` and `take` until `done`.

    request, allowed, vocabulary: the request, items that it may return, and tokens of the codes.
    layers: number of layers of the model.
    known: cached keys and values of the first tokens of the prompt, [layers, 2, kv heads, n, d]; n < tokens.
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
        self.seconds = dict.fromkeys(ENGINE_STAGES, 0.0)
        self._vocabulary = vocabulary
        self._prompt = len(request.prompt)
        # A level cannot hold more hypotheses than the trie has nodes there.
        rows = sum(min(request.width + SPARE_ROWS, len(code)) for code in allowed.trie.code[:-1])
        self.key_values = KeyValues(layers, self._prompt + rows, known)
        self._free_slot = self._prompt
        self._computed: dict[int, _Computed] = {}  # by levels
        root = _Hypotheses(0, self.beam.nodes, self.beam.codes, np.zeros((1, 0), np.int64))
        self._next = [root, *self._look_ahead(root, SPARE_ROWS)]  # of the next pass, by levels

    @property
    def done(self) -> bool:
        return self.level == self._vocabulary.levels

    @property
    def next_rows(self) -> int:
        """Number of tokens that `next_inputs` will return."""
        prompt = self._prompt - self.cached_tokens if self.level == 0 else 0
        return prompt + sum(len(each.nodes) for each in self._next if each.level)

    def next_inputs(self) -> list[ForwardInput]:
        """Return the tokens whose hidden states are needed next; a prompt is an input of its own."""
        inputs = []
        if self.level == 0:
            ids = torch.as_tensor(self.request.prompt[self.cached_tokens :], dtype=torch.long)
            segment = Segment(self.key_values, self.cached_tokens, len(ids))
            positions = torch.arange(self.cached_tokens, self._prompt)
            inputs.append(ForwardInput(ids, positions, segment, {0: slice(len(ids) - 1, len(ids))}))
        if codes := [each for each in self._next if each.level]:
            inputs.append(self._input_of(codes))
        return inputs

    def _input_of(self, hypotheses: list[_Hypotheses]) -> ForwardInput:
        """Make the input of the last codes of hypotheses, level after level."""
        rows = sum(len(each.nodes) for each in hypotheses)
        ids, positions = np.empty(rows, np.int64), np.empty(rows, np.int64)
        own = np.full((rows, hypotheses[-1].level), -1)
        last, end = {}, 0
        for each in hypotheses:
            begin, end = end, end + len(each.nodes)
            ids[begin:end] = each.codes + self._vocabulary.first_code[each.level - 1]
            positions[begin:end] = self._prompt + each.level - 1
            own[begin:end, : each.level] = each.slots
            last[each.level] = slice(begin, end)
        segment = Segment(
            self.key_values, int(hypotheses[0].slots[0, -1]), rows, self._prompt, torch.from_numpy(own)
        )
        return ForwardInput(torch.from_numpy(ids), torch.from_numpy(positions), segment, last)

    def take(self, hidden: Mapping[int, Tensor], log_probs: LogProbs, together: int = 1) -> None:
        """Advance the beam by the results of a pass.

        hidden: states of the rows `ForwardInput.last` of all inputs, [n, d], by level.
        log_probs: computes log p(code | hypothesis) of every code of a level.
        together: number of requests in the pass; they share the rows that may be computed in vain.
        """
        for each in self._next:
            computed = _Computed(each.nodes, each.slots, hidden[each.level])
            before = self._computed.get(each.level)
            self._computed[each.level] = computed if before is None else before.and_others(computed)
        self._next = []
        while not (self.done or self._next):
            self._next = self._advance(log_probs, SPARE_ROWS // together)

    def _advance(self, log_probs: LogProbs, spare: int) -> list[_Hypotheses]:
        """Advance by one level, or return the hypotheses that have to be computed first."""
        computed = self._computed.get(self.level)
        row = np.full(len(self.beam.nodes), -1) if computed is None else computed.rows(self.beam.nodes)
        known = (row >= 0) | self._ended()
        waiting = np.flatnonzero(~known)
        last = self.level == self._vocabulary.levels - 1
        if len(waiting) and not (last and known.any()):
            return self._to_compute(waiting, spare)
        kept = np.flatnonzero(known)
        beam, row = self.beam.at(kept), row[kept]
        open_ = row >= 0
        found = np.zeros((0, self._vocabulary.codebook_sizes[self.level]), np.float32)
        if computed is not None:
            found = log_probs(computed.hidden[torch.from_numpy(row[open_])], self.level)
        place = np.where(open_, np.cumsum(open_) - 1, -1)
        ahead = advance(self.level, beam, found, place, self.request.width, self.allowed)
        if len(waiting) and not self._decided(ahead, self.beam.scores[waiting[0]]):
            return self._to_compute(waiting, spare)
        self.beam, self._row_of_parent = ahead, row[ahead.parents]
        self.level += 1
        return []

    def _ended(self) -> NDArray[np.bool_]:
        """Mark the hypotheses of the beam that wrote the end: bool [w]."""
        if self._vocabulary.end is None or self.level == 0:
            return np.zeros(len(self.beam.nodes), bool)
        ended: NDArray[np.bool_] = self.beam.codes == self._vocabulary.end
        return ended

    def _decided(self, ahead: Beam, best_waiting: float) -> bool:
        """Whether no hypothesis that was left out could be among the answers."""
        limit = self.request.limit
        return len(ahead.scores) >= limit and bool(ahead.scores[limit - 1] > best_waiting)

    def _to_compute(self, waiting: Codes, spare: int) -> list[_Hypotheses]:
        """Choose the hypotheses of the next pass among these positions of the beam, and look ahead of them."""
        if self.level == self._vocabulary.levels - 1:
            waiting = waiting[: self._first_part(waiting)]
        above = self._computed[self.level - 1].slots[self._row_of_parent[waiting]]
        hypotheses = self._with_slots(self.level, self.beam.nodes[waiting], self.beam.codes[waiting], above)
        return [hypotheses, *self._look_ahead(hypotheses, spare)]

    def _first_part(self, waiting: Codes) -> int:
        """Return how many hypotheses, best first, are computed at once at the last level."""
        count, limit = len(waiting), self.request.limit
        if self.level in self._computed or limit >= len(self.beam.scores):
            return count
        near = self.beam.scores[waiting] >= self.beam.scores[limit - 1] - SLACK
        first = max(1, int(near.sum()))
        return first if count - first >= WORTH * count else count

    def _look_ahead(self, hypotheses: _Hypotheses, spare: int) -> list[_Hypotheses]:
        """Return the children of hypotheses, their children, and so on, while they are few: all that beams can hold."""
        found: list[_Hypotheses] = []
        rows, most = len(hypotheses.nodes), self.request.width + spare
        while hypotheses.level < self._vocabulary.levels - 1:
            parent, child, code = self.allowed.expand(hypotheses.level, hypotheses.nodes)
            goes_on = np.ones(len(child), bool)
            if self._vocabulary.end is not None:
                goes_on = code != self._vocabulary.end
            dead = len(self.allowed.excluded)  # at most: one node for each excluded slot
            if goes_on.sum() > most + dead:
                break
            if dead:
                goes_on &= self.allowed.alive(hypotheses.level + 1, child)
            count = int(goes_on.sum())
            rows += count
            if not 0 < count <= most or rows > FULL_PASS_ROWS:
                break
            above = hypotheses.slots[parent[goes_on]]
            hypotheses = self._with_slots(hypotheses.level + 1, child[goes_on], code[goes_on], above)
            found.append(hypotheses)
        return found

    def _with_slots(self, level: int, nodes: Codes, codes: Codes, above: Codes) -> _Hypotheses:
        """Make hypotheses with new slots for their last codes. above: ancestors' slots, int64 [n, level − 1]."""
        itself = np.arange(self._free_slot, self._free_slot + len(nodes))
        self._free_slot += len(nodes)
        return _Hypotheses(level, nodes, codes, np.column_stack([above, itself]))


def last_of(inputs: Sequence[ForwardInput], hidden: Tensor) -> dict[int, Tensor]:
    """Pick the rows that `Search.take` needs, by level. hidden: states of one request's inputs, [rows, d]."""
    parts = torch.split(hidden, [each.segment.rows for each in inputs])
    return {
        level: part[rows].clone()  # a view would keep the states of a whole prompt
        for each, part in zip(inputs, parts, strict=True)
        for level, rows in each.last.items()
    }
