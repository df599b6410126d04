"""The pool of one request: candidates from several sources, and their fused ranking.

    beam        the best identifiers by the model
    query_log   what people chose for the very same query
    links       what people took soon after the person's last items (`transitions`), or with them (`co_occurrence`); for
                a search those that hold all words, where an identifier is one code
    lexical     the best matches by words, and the most popular of those that hold all words
    fresh       items added after training, by words; for a recommendation by the words of the person's last items
    dense       items added after training, by their vectors and the model's hidden state

`Pool.gather` finds the candidates besides the beam that need no model; the engine scores them in the passes of the
beam; `Pool.fuse` adds the dense ones and combines all signals. All sources obey the same `Allowed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from index.pool.fusion import ITEM_SIGNALS, LINKS, NOTHING_SIGNALS, WORDS, relevance
from index.pool.linked import Linked
from index.pool.match import LexicalMatch, top
from index.pool.pool_index import PoolIndex
from index.sequence.events import Task
from index.trie.allowed import Allowed

Source = Literal["beam", "query_log", "transitions", "co_occurrence", "lexical", "fresh", "dense"]
LEXICAL, LINKED, QUERY_LOG, FRESH_ITEMS, DENSE = 12, 8, 8, 8, 8  # candidates of each source at most
OF_ONE_CODE = 24  # of the first two where the prompt's own pass scores all items
LAST_ITEMS = 3  # items of a history whose titles look for fresh items
LIKE_ITEMS = 10  # items of a history, the last ones, that an item may be like


class ModelScores(Protocol):
    """Scores of a request by the model.

    items, scores: catalogue rows of the beam, and their log-probabilities. pool_scores: those of `Pool.to_score`.
    state: hidden state at the end of the prompt, [d]; empty if the engine does not give it.
    """

    @property
    def items(self) -> list[int]: ...
    @property
    def scores(self) -> list[float]: ...
    @property
    def pool_scores(self) -> list[float]: ...
    @property
    def state(self) -> list[float]: ...


@dataclass(frozen=True, eq=False)
class Fused:
    """A fused ranking, best first.

    items: catalogue rows. scores: in nats. relevance: probabilities. sources: the first source of each item.
    signals: contribution of each of `ITEM_SIGNALS` to each score, float64 [n, signals].
    """

    items: list[int]
    scores: list[float]
    relevance: list[float]
    sources: list[Source]
    signals: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pool:
    """The candidates of one request besides the beam, without the dense ones.

    allowed: items that may be returned.
    rows: catalogue rows, int64 [n], each once. sources: of each row.
    match: of the query; None for a recommendation. chosen: people who chose a row for this query.
    linked: where the history leads.
    history: catalogue rows of the person's last items.
    """

    index: PoolIndex
    task: Task
    allowed: Allowed
    rows: NDArray[np.int64]
    sources: list[Source]
    match: LexicalMatch | None
    chosen: dict[int, int]
    linked: Linked
    history: Sequence[int]

    @classmethod
    def gather(cls, index: PoolIndex, allowed: Allowed, query: str | None, history: Sequence[int]) -> Pool:
        """Find candidates.

        query: text of a search; None for a recommendation.
        history: catalogue rows of the person's items, oldest first.
        """
        found: dict[int, Source] = {}
        chosen: dict[int, int] = {}
        match = None
        one_code = allowed.trie.levels == 1
        linked = Linked.by(index, history)
        if query is None:
            found |= linked.best(allowed, OF_ONE_CODE if one_code else LINKED)
        else:
            match = index.lexical.match(query)
            rows, people = index.query_log.chosen(query)
            chosen = dict(zip(rows.tolist(), people.tolist(), strict=True))
            for row in allowed.of_rows(rows)[:QUERY_LOG].tolist():  # the most chosen first
                found[row] = "query_log"
            most = OF_ONE_CODE if one_code else LEXICAL
            for row in top(match, allowed, most, index.counts).tolist():
                found.setdefault(row, "fresh" if index.fresh[row] else "lexical")
            if one_code:
                found = {**linked.best(allowed, OF_ONE_CODE, match.all_words), **found}
        for row in _fresh(index, allowed, match, history):
            found[row] = "fresh"
        task = Task.RECOMMENDATION if query is None else Task.SEARCH
        return cls(
            index,
            task,
            allowed,
            np.array(list(found), np.int64),
            list(found.values()),
            match,
            chosen,
            linked,
            history[-LIKE_ITEMS:],
        )

    @property
    def to_score(self) -> list[int]:
        """Rows that the model has to score: those that it was trained on."""
        known: list[int] = self.rows[~self.index.fresh[self.rows]].tolist()
        return known

    @property
    def needs_state(self) -> bool:
        """Whether the model's hidden state is a signal."""
        if self.task is Task.RECOMMENDATION and not len(self.index.fresh_rows):
            return False
        return self.index.dense is not None

    def fuse(self, found: ModelScores, limit: int) -> Fused:
        """Rank the pool together with the beam. limit: most items of the ranking."""
        fusion = self.index.fusion
        assert fusion is not None
        rows, signals = self.signals(found)
        parts = signals * fusion.item_weights(self.task) + 0.0  # an explanation shows no -0.0
        utility = parts.sum(axis=1)
        nothing = float(self.nothing() @ fusion.nothing_weights(self.task))
        order = np.lexsort((rows, -utility))[:limit]
        share = relevance(utility, nothing)
        source: dict[int, Source] = dict(zip(self.rows.tolist(), self.sources, strict=True))
        for row in found.items:
            source[row] = "fresh" if self.index.fresh[row] else "beam"
        return Fused(
            rows[order].tolist(),
            utility[order].tolist(),
            share[order].tolist(),
            [source.get(row, "dense") for row in rows[order].tolist()],
            parts[order],
        )

    def signals(self, found: ModelScores) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the rows of beam, pool and dense candidates, each once, and their `ITEM_SIGNALS`.

        Their shapes are int64 [n] and float64 [n, signals].
        """
        code = dict(zip(self.to_score, found.pool_scores, strict=True))
        code |= dict(zip(found.items, found.scores, strict=True))
        near = self._nearest(found.state)
        rows = np.array(list(dict.fromkeys([*found.items, *self.rows.tolist(), *near])), np.int64)
        known = ~self.index.fresh[rows]
        likeness = self.index.lexical.likeness(rows, self.history).astype(np.float64)
        dense = np.zeros(len(rows))
        if self.index.dense is not None and found.state:
            dense = self.index.dense.scores(found.state, rows)
        columns: dict[str, NDArray[np.float64]] = {
            "code": np.array([code.get(row, 0.0) for row in rows.tolist()]) * known,
            "popularity": np.log1p(self.index.counts[rows]) * known,
            "query_log": np.log1p([self.chosen.get(row, 0) for row in rows.tolist()]) * known,
            **dict(zip(LINKS, self.linked.strength(rows) * known, strict=True)),
            "likeness": likeness * known,
            "dense": dense * known,
            "fresh": (~known).astype(np.float64),
            "fresh_likeness": likeness * ~known,
            "fresh_dense": dense * ~known,
        }
        if self.match is not None:
            words = dict(zip(WORDS, _words(self.match, rows), strict=True))
            columns |= {name: values * known for name, values in words.items()}
            columns |= {f"fresh_{name}": values * ~known for name, values in words.items()}
        return rows, np.stack([columns[name] for name in ITEM_SIGNALS[self.task]], axis=1)

    def _nearest(self, state: Sequence[float]) -> list[int]:
        """Return the dense candidates: of all items, only those that no beam reaches."""
        dense, fresh = self.index.dense, self.index.fresh_rows
        if dense is None or not len(fresh) or not state:
            return []
        best = dense.best(state, self.index.fresh_dense_rows, self.allowed.holds_rows(fresh), DENSE)
        nearest: list[int] = fresh[best].tolist()
        return nearest

    def nothing(self) -> NDArray[np.float64]:
        """Return the `NOTHING_SIGNALS`, float64 [signals]."""
        values = {"nothing": 1.0}
        if self.match is not None:
            values["unknown_words"] = 1.0 - self.match.known_share
        return np.array([values[name] for name in NOTHING_SIGNALS[self.task]])


def _words(match: LexicalMatch, rows: NDArray[np.int64]) -> list[NDArray[np.float64]]:
    """Return the signals `WORDS` of these rows."""
    found = (
        match.scores[rows],
        match.all_words[rows],
        match.title_share(rows),
        match.exact_title(rows),
        match.exact_attribute(rows),
        match.exact_category(rows),
    )
    return [np.asarray(values, np.float64) for values in found]


def _fresh(
    index: PoolIndex, allowed: Allowed, match: LexicalMatch | None, history: Sequence[int]
) -> list[int]:
    """Return fresh candidates: the best by words; for a recommendation all if they are few."""
    rows = index.fresh_rows
    if not len(rows):
        return []
    if match is None:
        if len(rows) <= FRESH_ITEMS:
            few: list[int] = allowed.of_rows(rows).tolist()
            return few
        match = index.lexical.match(" ".join(index.catalogue.title(row) for row in history[-LAST_ITEMS:]))
    best: list[int] = top(match, allowed, FRESH_ITEMS, index.counts, among=rows).tolist()
    return best
