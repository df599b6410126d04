"""The search of one request: its beam, its pool, its keys and values, and the tokens that it needs next.

    pass 0:  the prompt                                → the beam of level 0
    then:    the codes that were just written, as further query positions of the one sequence; each attends to the
             prompt, to its ancestors and to itself    → the beam of the next level, D − 1 times

D is the number of codes that the request wants written, L if it does not say. Hypotheses that have ended early (spelled
identifiers) need no pass: all that follows them is certain.

Pool. The prefixes of its items are known from the start, so that all of them go into the first pass, next to the
prompt. They are nodes of the same trie: where the beam comes to one of them, it is there already. A pool therefore
needs no pass of its own, and each level's codes are scored for beam and pool together.

Look-ahead (speculative expansion). Deep in a trie most nodes have one child, so that the candidates for the next beam
are known before it is chosen. If the children of all hypotheses exceed the beam by a few at most, they are computed in
the same pass, and so are their children: a pass reads all weights, however few its rows are. (SpecInfer, arXiv
2305.09781, verifies drafts of a tree in this way; here the trie leaves nothing to guess, so that nothing is refused.)

Early drop. A hypothesis can only lose by its next code, so that at the last level those behind the `limit`-th answer
found so far cannot give an answer any more. The pass of that level therefore takes the best hypotheses first; the
others follow only if they still can win. The answers are those of the whole beam.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed
from server.engine.beam import Beam, advance
from server.engine.contract import ENGINE_STAGES, RankRequest
from server.engine.pool import Pool
from server.engine.torch_backend.attention import KeyValues, Segment
from server.engine.torch_backend.forward_input import ForwardInput
from server.engine.torch_backend.token_tree import Ints, TokenTree, places

LogProbs = Callable[[Tensor, int], NDArray[np.float32]]  # hidden states [n, d], level → [n, codebook]

# Rows of a pass that may be computed in vain: together they cost about as much as a pass without rows.
SPARE_ROWS = 24
FULL_PASS_ROWS = 512  # more rows would take as long in a pass of their own
SLACK = 0.7  # nats behind the limit-th hypothesis within which all are computed at once at the last level
WORTH = 0.25  # share of the hypotheses that must be left over to make a second pass worth its risk


class Search:
    """Beam search for one request, and the scores of its pool. Alternate `next_inputs` and `take` until `done`.

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
        self.state: list[float] = []
        self.seconds = dict.fromkeys(ENGINE_STAGES, 0.0)
        self._vocabulary = vocabulary
        self._levels = request.written(vocabulary.levels)
        self._prompt = len(request.prompt)
        self._pool = Pool(request.pool, allowed.trie, self._levels, vocabulary.end)
        # A level cannot hold more hypotheses than the trie has nodes there.
        most = request.width + SPARE_ROWS + len(request.pool)
        rows = sum(min(most, len(code)) for code in allowed.trie.code[: self._levels - 1])
        self.key_values = KeyValues(layers, self._prompt + rows, known)
        self._tree = TokenTree(allowed.trie, vocabulary, self.key_values, self._prompt)
        self._parents = self.beam.nodes  # nodes above the beam's, int64 [w]
        self._look_ahead(self.beam.nodes, SPARE_ROWS)
        for depth in range(1, self._levels):
            nodes, items = self._pool.prefixes(depth)
            self._tree.add(depth, nodes, self._pool.nodes[items, depth - 1])

    @property
    def done(self) -> bool:
        return self.level == self._levels

    @property
    def pool_scores(self) -> list[float]:
        scores: list[float] = self._pool.scores.tolist()
        return scores

    @property
    def next_rows(self) -> int:
        """Number of tokens that `next_inputs` will return."""
        return (self._prompt - self.cached_tokens if self.level == 0 else 0) + self._tree.next_rows

    def next_inputs(self) -> list[ForwardInput]:
        """Return the tokens whose hidden states are needed next; a prompt is an input of its own."""
        inputs = []
        if self.level == 0:
            ids = torch.as_tensor(self.request.prompt[self.cached_tokens :], dtype=torch.long)
            segment = Segment(self.key_values, self.cached_tokens, len(ids))
            positions = torch.arange(self.cached_tokens, self._prompt)
            inputs.append(ForwardInput(ids, positions, segment, {0: torch.tensor([len(ids) - 1])}))
        if (codes := self._tree.next_input()) is not None:
            inputs.append(codes)
        return inputs

    def take(self, hidden: Mapping[int, Tensor], log_probs: LogProbs, together: int = 1) -> None:
        """Advance the beam by the results of a pass.

        hidden: states of the rows `ForwardInput.last` of all inputs, [n, d], by depth.
        log_probs: computes log p(code | prefix) of every code of a level.
        together: number of requests in the pass; they share the rows that may be computed in vain.
        """
        if self.request.state and self.level == 0 and not self.state:
            self.state = hidden[0][0].float().tolist()
        self._tree.take(hidden)
        while not (self.done or self._tree.next_rows):
            self._advance(log_probs, SPARE_ROWS // together)

    def _advance(self, log_probs: LogProbs, spare: int) -> None:
        """Advance beam and pool by one level, or choose the hypotheses that have to be computed first."""
        row = self._tree.rows(self.level, self.beam.nodes)
        known = (row >= 0) | self._ended()
        waiting = np.flatnonzero(~known)
        last = self.level == self._levels - 1
        if len(waiting) and not (last and known.any()):
            self._compute(waiting, spare)
            return
        kept = np.flatnonzero(known)
        beam, row = self.beam.at(kept), row[kept]
        open_ = row >= 0
        scored = row[open_]
        pool_row = self._tree.rows(self.level, self._pool.prefixes(self.level)[0])
        if len(pool_row):
            scored = np.append(scored, np.setdiff1d(pool_row, scored))
        found = np.zeros((0, self._vocabulary.codebook_sizes[self.level]), np.float32)
        if len(scored):
            found = log_probs(self._tree.hidden(self.level, scored), self.level)
        place = np.where(open_, np.cumsum(open_) - 1, -1)
        ahead = advance(self.level, beam, found, place, self.request.width, self.allowed)
        if len(waiting) and not self._decided(ahead, self.beam.scores[waiting[0]]):
            self._compute(waiting, spare)
            return
        self._pool.add(self.level, found[places(pool_row, scored)])
        self.beam, self._parents = ahead, beam.nodes[ahead.parents]
        self.level += 1

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

    def _compute(self, waiting: Ints, spare: int) -> None:
        """Have the next pass compute hypotheses at these positions of the beam, and what comes behind the beam."""
        open_ = np.flatnonzero(~self._ended())
        if self.level == self._levels - 1:
            waiting = waiting[: self._first_part(waiting, len(open_))]
        self._tree.add(self.level, self.beam.nodes[waiting], self._parents[waiting])
        self._look_ahead(self.beam.nodes[open_], spare)

    def _first_part(self, waiting: Ints, open_: int) -> int:
        """Return how many hypotheses, best first, are computed at once at the last level.

        open_: number of hypotheses that have not ended.
        """
        limit = self.request.limit
        if limit >= len(self.beam.scores):
            return len(waiting)
        near = int((self.beam.scores[waiting] >= self.beam.scores[limit - 1] - SLACK).sum())
        worth_it = len(waiting) - near >= WORTH * open_
        return near if near and worth_it else len(waiting)  # none is near once the first part is known

    def _look_ahead(self, nodes: Ints, spare: int) -> None:
        """Add the children of a beam's nodes, their children, and so on, while they are few: all that beams can hold.

        Nodes that a pool has added before count as if they were new, so that it does not change how far this goes.
        """
        depth, rows, most = self.level, len(nodes), self.request.width + spare
        while depth < self._levels - 1:
            parent, child, code = self.allowed.expand(depth, nodes)
            goes_on = np.ones(len(child), bool)
            if self._vocabulary.end is not None:
                goes_on = code != self._vocabulary.end
            dead = len(self.allowed.excluded)  # at most: one node for each excluded slot
            if goes_on.sum() > most + dead:
                break
            depth += 1
            if dead:
                goes_on &= self.allowed.alive(depth, child)
            count = int(goes_on.sum())
            rows += count
            if not 0 < count <= most or rows > FULL_PASS_ROWS:
                break
            self._tree.add(depth, child[goes_on], nodes[parent[goes_on]])
            nodes = child[goes_on]
