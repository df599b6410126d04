"""The log of both behaviours as arrays: items, queries as terms, and the events of each person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.sequence.events import Event, Task
from index.words import words
from training.baselines.networks.two_views import PADDING
from training.baselines.sequences import Batch, epoch_batches
from training.baselines.settings import BaselineError
from training.data.splits import Case

NO_QUERY, UNKNOWN = 1, 2  # terms: of a recommendation, and of a query whose words nobody used in training
FIRST_TERM = 3
MOST_TERMS = 16  # of a query; later ones are left out


class Vocabulary:
    """The words of the training queries, numbered."""

    def __init__(self, queries: Sequence[str]) -> None:
        found = sorted({word for query in queries for word in words(query)})
        self._term = {word: FIRST_TERM + k for k, word in enumerate(found)}
        # Validations read the same queries again and again.
        self._read: dict[str | None, list[int]] = {None: [NO_QUERY]}

    def __len__(self) -> int:
        """Return the number of terms, with those that are no words."""
        return FIRST_TERM + len(self._term)

    def terms(self, queries: Sequence[str | None]) -> NDArray[np.int64]:
        """Return the terms of queries, int64 [n, MOST_TERMS], filled up with `PADDING`; None is no query."""
        rows = np.full((len(queries), MOST_TERMS), PADDING)
        for row, query in zip(rows, queries, strict=True):
            if (known := self._read.get(query)) is None:
                known = [self._term[word] for word in words(query or "") if word in self._term]
                known = self._read[query] = known[:MOST_TERMS] or [UNKNOWN]
            row[: len(known)] = known
        return rows


@dataclass(frozen=True)
class JointBatch:
    """Windows of histories, as `TwoViews.states` reads them.

    rows: int64 [B, T]. terms: int64 [B, T, K]. users: int64 [B].
    targets: catalogue row of the next event, int64 [B, T], −1 on padding.
    searches: whether the next event is a search, bool [B, T].
    """

    rows: Tensor
    terms: Tensor
    users: Tensor
    targets: Tensor
    searches: Tensor


class JointLog:
    """The training events of all people. Event 0 stands before every history."""

    def __init__(self, histories: Sequence[Sequence[Event]], items: int) -> None:
        """Read the events. items: size of the catalogue. Raises `BaselineError` if no event is a search."""
        rows, queries, users = [items], [0], [0]
        known: dict[str | None, int] = {None: 0}
        self._histories = []
        for user, history in enumerate(histories):
            first = len(rows)
            for event in history:
                rows.append(event.item)
                queries.append(known.setdefault(query_of(event), len(known)))
                users.append(user)
            if len(rows) > first:
                self._histories.append(np.array([0, *range(first, len(rows))]))
        if len(known) == 1:
            raise BaselineError("no training event is a search, so there is no query to learn from")
        self.vocabulary = Vocabulary([query for query in known if query is not None])
        self._items = items
        self._rows, self._queries, self._users = map(torch.tensor, (rows, queries, users))
        self._terms = torch.from_numpy(self.vocabulary.terms(list(known)))

    def batches(self, max_events: int, batch_size: int, rng: np.random.Generator) -> list[JointBatch]:
        """Return the batches of an epoch: every event is the target of one position. See `epoch_batches`."""
        return [self._read(b) for b in epoch_batches(self._histories, max_events, batch_size, rng)]

    def _read(self, batch: Batch) -> JointBatch:
        """Return the batch with what its events are; its own rows and targets are numbers of events."""
        inside = batch.targets >= 0
        asked = self._queries[batch.targets.clamp(min=0)]  # of padding: event 0, which has no query
        targets = self._rows[batch.targets.clamp(min=0)].masked_fill(~inside, -1)
        users = self._users[batch.targets[:, 0]]
        return JointBatch(self._rows[batch.rows], self._terms[asked], users, targets, asked > 0)

    def read_cases(self, cases: Sequence[Case], task: Task, max_events: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows, int64 [B, T], and terms, [B, T, K], of the latest events; and the last position, [B].

        The query of the last position is that of the case for a search, none for a recommendation.
        """
        longest = min(max_events, max(len(case.history) for case in cases) + 1)
        rows = torch.full((len(cases), longest), self._items)
        terms = torch.full((len(cases), longest, MOST_TERMS), PADDING)
        last = torch.empty(len(cases), dtype=torch.int64)
        for k, case in enumerate(cases):
            latest = case.history[-longest:]
            seen = [self._items, *(event.item for event in latest)][-longest:]
            now = case.query if task is Task.SEARCH else None
            asked = [*(query_of(event) for event in latest), now][-longest:]
            rows[k, : len(seen)] = torch.tensor(seen)
            terms[k, : len(asked)] = torch.from_numpy(self.vocabulary.terms(asked))
            last[k] = len(seen) - 1
        return rows, terms, last


def query_of(event: Event) -> str | None:
    """Return the query of a search; None for a recommendation."""
    return event.query if event.behaviour is Task.SEARCH else None
