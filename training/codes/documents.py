"""Documents and queries of GenRet: the texts of items, and what leads to them, both as requests without a history.

    document:  <|search|> tokens of the item's text <|item|>
    query:     <|search|> tokens of a query <|item|>

Queries of an item are those that people typed before they chose it in training, each as often as it was typed, and one
pseudo-query: its title. So a log without queries will do; then the pseudo-queries are all there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index.catalogue import Catalogue
from index.sequence.encoder import SequenceEncoder
from index.sequence.events import Event, Task
from index.sequence.plain_text import plain_tokens
from training.model.forward import to_device

DOCUMENT_TOKENS = 128
TOGETHER = 8


@dataclass(frozen=True)
class Documents:
    """The documents of N items, and the queries of each, as token ids.

    logged: number of queries that people typed.
    """

    documents: list[list[int]]
    queries: list[list[list[int]]]
    logged: int

    @classmethod
    def of(
        cls,
        encoder: SequenceEncoder,
        tokenizer: object,
        catalogue: Catalogue,
        histories: Sequence[Sequence[Event]],
    ) -> Documents:
        """Write texts and queries as tokens. A title without a token is no query; the document is then.

        encoder: of requests; its queries are cut at `max_query_tokens`.
        histories: training events of each person.
        """
        markers, first_added = encoder.vocabulary.markers, encoder.vocabulary.first_added
        documents, queries = [], []
        for item in catalogue:
            text = plain_tokens(tokenizer, item.text(), first_added)
            documents.append([markers["search"], *text[:DOCUMENT_TOKENS], markers["item"]])
            queries.append(
                [encoder.prompt([], item.title).ids if encoder.has_tokens(item.title) else documents[-1]]
            )
        logged = 0
        for history in histories:
            for event in history:
                if encoder.task_of(event) is Task.SEARCH:
                    queries[event.item].append(encoder.prompt([], event.query).ids)
                    logged += 1
        return cls(documents, queries, logged)

    def draw(
        self, size: int, groups: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[list[int], list[list[int]]]:
        """Return rows of different items, and a query of each.

        groups: group of each item, from 0. Items come with others of their group: up to a `TOGETHER`th of the batch.
        """
        order = rng.permutation(len(self.documents))
        if groups.any():
            first = np.unique(groups[order], return_index=True)[1]  # of each group; they come in this order
            order = order[np.argsort(first[groups[order]], kind="stable")]
            starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
            place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
            kept = place < max(2, size // TOGETHER)
            order = np.concatenate([order[kept], order[~kept]])
        rows = order[:size].tolist()
        return rows, [self.queries[row][rng.integers(len(self.queries[row]))] for row in rows]


def padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return texts below each other, int64 [B, T], and which tokens are no padding, bool [B, T]."""
    lengths = torch.tensor([len(text) for text in texts])
    attended = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    ids = torch.zeros(attended.shape, dtype=torch.long)
    ids[attended] = torch.tensor([token for text in texts for token in text])
    return to_device(ids, device), to_device(attended, device)
