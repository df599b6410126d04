"""One request on its way through the engine: its beam, its keys and values, and what it needs next.

    pass 0:  the prompt                                → the beam of level 0
    then:    the codes that were just written, as further query positions of the one sequence; each attends to the
             prompt, to its ancestors and to itself    → the beam of the next level, L − 1 times

Hypotheses that have ended early (spelled identifiers) are not fed: all that follows them is certain.

Looking ahead. Deep in a trie most nodes have one child, so that what the beam can hold next is known before it is
chosen. Where the children of all hypotheses exceed the beam by a few at most, they are fed with the same pass, and so
are theirs: a pass reads all weights, however few its rows are. (Drafts of a tree that are verified at once, as in
SpecInfer, arXiv 2305.09781; but the trie leaves nothing to guess, so that nothing is refused.)

Early drop. A hypothesis only loses by its next code, so at the last level those that stand behind the `limit`-th
answer already found cannot give an answer any more. The pass of that level therefore takes the best hypotheses
first, and the others follow only where they still can win. The answers are those of the whole beam.
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
from server.engine.contract import RankRequest
from server.engine.torch_backend.attention import KeyValues, Segment

Codes = NDArray[np.int64]
LogProbs = Callable[[Tensor, int], NDArray[np.float32]]  # hidden states [n, d], level → [n, codebook]

SPARE = 24  # rows that the requests of a pass may feed in vain: about what a pass costs beside its rows
ENOUGH = 512  # rows of a pass: more would take as long in a pass of their own
SLACK = 0.7  # nats behind the limit-th hypothesis, within which all are fed at once at the last level
WORTH = 0.25  # share of the hypotheses that must be left, for a pass of their own to be risked


@dataclass(frozen=True, eq=False)
class Feed:
    """What a request adds to a forward pass: token ids and positions, int64 [rows], and whose rows they are.

    last: which of the rows are the last tokens of hypotheses of a level, for each level; before the first code, that
    of the prompt.
    """

    ids: Tensor
    positions: Tensor
    segment: Segment
    last: Mapping[int, slice]


@dataclass(frozen=True, eq=False)
class _Hypotheses:
    """Some of one level. nodes: int64 [n], of the trie; codes: int64 [n], written last; slots: int64 [n, level], of
    the keys and values of all their codes."""

    level: int
    nodes: Codes
    codes: Codes
    slots: Codes


@dataclass(frozen=True, eq=False)
class _Fed:
    """Hypotheses of one level that were fed. nodes, slots: as above; hidden: states behind their last codes, [n, d]."""

    nodes: Codes
    slots: Codes
    hidden: Tensor

    def rows(self, nodes: Codes) -> Codes:
        """Where these nodes stand among the hypotheses: int64, −1 for those that are not there."""
        order = np.argsort(self.nodes)
        at = order[np.searchsorted(self.nodes, nodes, sorter=order).clip(max=len(order) - 1)]
        return np.where(self.nodes[at] == nodes, at, -1)

    def and_others(self, others: _Fed) -> _Fed:
        return _Fed(
            np.concatenate([self.nodes, others.nodes]),
            np.concatenate([self.slots, others.slots]),
            torch.cat([self.hidden, others.hidden]),
        )


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
        fed = sum(min(request.width + SPARE, len(code)) for code in allowed.trie.code[:-1])
        self.memory = KeyValues(layers, self._prompt + fed, known)
        self._free_slot = self._prompt
        self._fed: dict[int, _Fed] = {}  # by levels
        root = _Hypotheses(0, self.beam.nodes, self.beam.codes, np.zeros((1, 0), np.int64))
        self._next = [root, *self._ahead_of(root, SPARE)]  # what the next pass is fed, by levels

    @property
    def done(self) -> bool:
        return self.level == self._vocabulary.levels

    @property
    def next_rows(self) -> int:
        """How many tokens `feed` will give."""
        prompt = self._prompt - self.cached_tokens if self.level == 0 else 0
        return prompt + sum(len(fed.nodes) for fed in self._next if fed.level)

    def feed(self) -> list[Feed]:
        """The tokens whose hidden states are needed next, those of a prompt by themselves."""
        feeds = []
        if self.level == 0:
            ids = torch.as_tensor(self.request.prompt[self.cached_tokens :], dtype=torch.long)
            segment = Segment(self.memory, self.cached_tokens, len(ids))
            positions = torch.arange(self.cached_tokens, self._prompt)
            feeds.append(Feed(ids, positions, segment, {0: slice(len(ids) - 1, len(ids))}))
        if codes := [fed for fed in self._next if fed.level]:
            feeds.append(self._feed_of(codes))
        return feeds

    def _feed_of(self, hypotheses: list[_Hypotheses]) -> Feed:
        """Of their last codes, by levels."""
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
            self.memory, int(hypotheses[0].slots[0, -1]), rows, self._prompt, torch.from_numpy(own)
        )
        return Feed(torch.from_numpy(ids), torch.from_numpy(positions), segment, last)

    def take(self, hidden: Mapping[int, Tensor], log_probs: LogProbs, together: int = 1) -> None:
        """Advance the beam.

        hidden: states of the rows `Feed.last` of all feeds, [n, d], by levels. log_probs: log p(code | hypothesis) of
        every code of a level. together: requests that are being ranked; they share what may be fed in vain.
        """
        for each in self._next:
            fed = _Fed(each.nodes, each.slots, hidden[each.level])
            before = self._fed.get(each.level)
            self._fed[each.level] = fed if before is None else before.and_others(fed)
        self._next = []
        while not (self.done or self._next):
            self._next = self._advance(log_probs, SPARE // together)

    def _advance(self, log_probs: LogProbs, spare: int) -> list[_Hypotheses]:
        """One level more, or what must be fed for it."""
        fed = self._fed.get(self.level)
        row = np.full(len(self.beam.nodes), -1) if fed is None else fed.rows(self.beam.nodes)
        known = (row >= 0) | self._ended()
        waiting = np.flatnonzero(~known)
        last = self.level == self._vocabulary.levels - 1
        if len(waiting) and not (last and known.any()):
            return self._to_feed(waiting, spare)
        kept = np.flatnonzero(known)
        beam, row = self.beam.at(kept), row[kept]
        open_ = row >= 0
        found = np.zeros((0, self._vocabulary.codebook_sizes[self.level]), np.float32)
        if fed is not None:
            found = log_probs(fed.hidden[torch.from_numpy(row[open_])], self.level)
        place = np.where(open_, np.cumsum(open_) - 1, -1)
        ahead = advance(self.level, beam, found, place, self.request.width, self.allowed)
        if len(waiting) and not self._decided(ahead, self.beam.scores[waiting[0]]):
            return self._to_feed(waiting, spare)
        self.beam, self._row_of_parent = ahead, row[ahead.parents]
        self.level += 1
        return []

    def _ended(self) -> NDArray[np.bool_]:
        """Which hypotheses of the beam wrote the end: bool [w]."""
        if self._vocabulary.end is None or self.level == 0:
            return np.zeros(len(self.beam.nodes), bool)
        ended: NDArray[np.bool_] = self.beam.codes == self._vocabulary.end
        return ended

    def _decided(self, ahead: Beam, best_waiting: float) -> bool:
        """Whether none of the hypotheses that were not fed could be among the answers."""
        limit = self.request.limit
        return len(ahead.scores) >= limit and bool(ahead.scores[limit - 1] > best_waiting)

    def _to_feed(self, waiting: Codes, spare: int) -> list[_Hypotheses]:
        """Of the hypotheses at these positions of the beam, those of the next pass, and what it takes ahead of them."""
        if self.level == self._vocabulary.levels - 1:
            waiting = waiting[: self._near(waiting)]
        above = self._fed[self.level - 1].slots[self._row_of_parent[waiting]]
        hypotheses = self._placed(self.level, self.beam.nodes[waiting], self.beam.codes[waiting], above)
        return [hypotheses, *self._ahead_of(hypotheses, spare)]

    def _near(self, waiting: Codes) -> int:
        """How many of them are fed at once at the last level; they are sorted."""
        count, limit = len(waiting), self.request.limit
        if self.level in self._fed or limit >= len(self.beam.scores):
            return count
        near = self.beam.scores[waiting] >= self.beam.scores[limit - 1] - SLACK
        first = max(1, int(near.sum()))
        return first if count - first >= WORTH * count else count

    def _ahead_of(self, hypotheses: _Hypotheses, spare: int) -> list[_Hypotheses]:
        """Their children, and those of these, as long as they are few: all that the next beams can hold."""
        found: list[_Hypotheses] = []
        rows, most = len(hypotheses.nodes), self.request.width + spare
        while hypotheses.level < self._vocabulary.levels - 1:
            parent, child, code = self.allowed.expand(hypotheses.level, hypotheses.nodes)
            goes_on = np.ones(len(child), bool)
            if self._vocabulary.end is not None:
                goes_on = code != self._vocabulary.end
            dead = len(self.allowed.excluded)  # at most: one node a slot excluded
            if goes_on.sum() > most + dead:
                break
            if dead:
                goes_on &= self.allowed.alive(hypotheses.level + 1, child)
            count = int(goes_on.sum())
            rows += count
            if not 0 < count <= most or rows > ENOUGH:
                break
            above = hypotheses.slots[parent[goes_on]]
            hypotheses = self._placed(hypotheses.level + 1, child[goes_on], code[goes_on], above)
            found.append(hypotheses)
        return found

    def _placed(self, level: int, nodes: Codes, codes: Codes, above: Codes) -> _Hypotheses:
        """With slots for their last codes. above: those of their ancestors, int64 [n, level − 1]."""
        itself = np.arange(self._free_slot, self._free_slot + len(nodes))
        self._free_slot += len(nodes)
        return _Hypotheses(level, nodes, codes, np.column_stack([above, itself]))


def last_of(feeds: Sequence[Feed], hidden: Tensor) -> dict[int, Tensor]:
    """For `Search.take`. hidden: of all rows of the feeds of one request, [rows, d]."""
    parts = torch.split(hidden, [feed.segment.rows for feed in feeds])
    return {
        level: part[rows].clone()  # not to keep those of a whole prompt
        for feed, part in zip(feeds, parts, strict=True)
        for level, rows in feed.last.items()
    }
