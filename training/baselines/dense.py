"""A dense bi-encoder for search: query and item text through one sentence encoder, ranked by cosine.

It learns from logged searches, and perhaps from items that people chose one after the other. It is tuned first with the
other items of a batch as negatives (Karpukhin et al., *Dense Passage Retrieval*, arXiv 2004.04906), then also with
mined hard negatives (Xiong et al., *ANCE*, arXiv 2007.00808). These are items that the encoder itself ranks high for
the query, but that nobody chose for it. The index that they are mined from is encoded again in each round, or every few
steps, while the encoder learns.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from index.sequence.events import Task
from training.baselines.baseline import Baseline
from training.baselines.settings import BaselineError, DenseSettings
from training.data import assets
from training.data.dataset import DataSet
from training.data.splits import Case, Split

ENCODER = "minilm"
TEXTS = 64  # texts in one forward pass


class BiEncoder(nn.Module):
    """One encoder for queries and items: the normalised mean of the last hidden states."""

    def __init__(self, folder: Path, max_tokens: int, frozen_layers: int) -> None:
        """Open the encoder in `folder`; its token embeddings and first `frozen_layers` layers are frozen.

        max_tokens: longer texts are cut.
        Raises `BaselineError` if no layer is left to tune.
        """
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.encoder = AutoModel.from_pretrained(folder)
        self.max_tokens = max_tokens
        layers = self.encoder.encoder.layer
        if frozen_layers >= len(layers):
            raise BaselineError(
                f"frozen_layers {frozen_layers} leaves none of the {len(layers)} layers to tune"
            )
        for part in (self.encoder.embeddings, *layers[:frozen_layers]):
            part.requires_grad_(False)
        if self.encoder.pooler is not None:  # not used
            self.encoder.pooler.requires_grad_(False)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors, float32 [len(texts), d]."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        hidden = self.encoder(**tokens).last_hidden_state  # [B, T, d]
        mask = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors of any number of texts, float32 [len(texts), d], without gradients and dropout."""
        training = self.training
        self.eval()
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))  # similar lengths share a pass
        vectors = torch.cat(
            [self([texts[k] for k in order[s : s + TEXTS]]) for s in range(0, len(order), TEXTS)]
        )
        self.train(training)
        placed = torch.empty_like(vectors)
        placed[torch.tensor(order)] = vectors
        return placed


@dataclass(frozen=True)
class Pairs:
    """Pairs of a text and the item that was chosen for it.

    A logged search has its query as text. Of two items that somebody chose one after the other, the text of the first
    leads to the second (Penha et al., arXiv 2508.10478).

    queries: the distinct texts.
    query: index into `queries` of each pair, int64 [pairs].
    item: catalogue row of each pair, int64 [pairs].
    chosen: for each text, the rows of all items that are no negatives: those chosen for it, and its own.
    searches: number of pairs that are searches; they come first.
    """

    queries: list[str]
    query: NDArray[np.int64]
    item: NDArray[np.int64]
    chosen: list[set[int]]
    searches: int

    @classmethod
    def of(cls, split: Split, texts: Sequence[str] = (), pairs: str = "searches") -> Pairs:
        """Collect the pairs of the training split. Raises `BaselineError` if no event is a search.

        texts: of the items, for `pairs` 'both'.
        """
        logged = [(e.query, e.item) for h in split.train for e in h if e.behaviour is Task.SEARCH and e.query]
        if not logged:
            raise BaselineError("no training event is a search, so there is no query to learn from")
        searches = len(logged)
        known: dict[str, set[int]] = defaultdict(set)
        if pairs == "both":
            following = [(a.item, b.item) for h in split.train for a, b in pairwise(h) if a.item != b.item]
            logged += [(texts[before], item) for before, item in following]
            for before, _ in following:
                known[texts[before]].add(before)
        for query, item in logged:
            known[query].add(item)
        queries = sorted(known)
        rows = {query: row for row, query in enumerate(queries)}
        return cls(
            queries,
            np.array([rows[query] for query, _ in logged]),
            np.array([item for _, item in logged]),
            [known[query] for query in queries],
            searches,
        )

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return `count` pairs or fewer, without repetition: half of them searches, as far as there are as many."""
        others = len(self.query) - self.searches
        of_searches = min(self.searches, count - min(others, count // 2))
        rows = [
            rng.choice(self.searches, of_searches, replace=False),
            self.searches + rng.choice(others, min(others, count - of_searches), replace=False),
        ]
        return np.concatenate(rows).astype(np.int64)


class EncodedCatalogue:
    """Cached vectors of items and queries, from the encoder's weights at the last `refresh`."""

    def __init__(self, model: BiEncoder, texts: Sequence[str]) -> None:
        self._model, self._texts = model, texts
        self._items: Tensor | None = None
        self._queries: dict[str, Tensor] = {}

    def refresh(self) -> None:
        """Encode the items again, and drop the vectors of queries."""
        self._items = self._model.encode(self._texts)
        self._queries = {}

    def items(self) -> NDArray[np.float32]:
        """Return the vectors of all items, float32 [N, d]."""
        if self._items is None:
            self.refresh()
        assert self._items is not None
        vectors: NDArray[np.float32] = self._items.numpy()
        return vectors

    def scores(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Return the cosine of each query with every item: float32 [queries, N]."""
        items = self.items()
        new = sorted(set(queries) - self._queries.keys())
        if new:
            self._queries |= dict(zip(new, self._model.encode(new), strict=True))
        cosines: NDArray[np.float32] = (
            torch.stack([self._queries[q] for q in queries]) @ torch.from_numpy(items).T
        ).numpy()
        return cosines

    def hard_negatives(
        self, pairs: Pairs, queries: NDArray[np.int64], most: int
    ) -> dict[int, NDArray[np.int64]]:
        """Return, for each query, the `most` best-ranked items that nobody chose for it, best first: int64 [≤ most].

        queries: different indices into `pairs.queries`, int64 [n].
        """
        found = {}
        scores = self.scores([pairs.queries[q] for q in queries])
        for query, row in zip(queries.tolist(), scores, strict=True):
            chosen = pairs.chosen[query]
            row[list(chosen)] = -np.inf
            found[query] = np.argsort(-row, kind="stable")[: min(most, len(row) - len(chosen))]
        return found


@dataclass(frozen=True)
class Batch:
    """A batch of B logged pairs and M mined negatives.

    query: index of each pair's query, int64 [B].
    items: catalogue rows of the logged items, then of the mined negatives, int64 [B + M].
    """

    query: NDArray[np.int64]
    items: NDArray[np.int64]


class Round:
    """The batches of a round; negatives are mined in all rounds but the first.

    The round is cut into stretches of `refresh_every` steps. Before each one, the items are encoded by the weights of
    that moment, and negatives are mined for the queries of the stretch.
    """

    def __init__(self, settings: DenseSettings, pairs: Pairs, encoded: EncodedCatalogue, number: int) -> None:
        """Prepare round `number`: 1, 2, ..."""
        self._settings, self._pairs, self._encoded, self._number = settings, pairs, encoded, number

    def __len__(self) -> int:
        return self._settings.steps

    def __iter__(self) -> Iterator[Batch]:
        pairs, size = self._pairs, self._settings.batch_size
        rng = np.random.default_rng([self._settings.seed, self._number])
        stretch = self._settings.refresh_every or len(self)
        for start in range(0, len(self), stretch):
            drawn = [pairs.draw(size, rng) for _ in range(min(stretch, len(self) - start))]
            mined = self._mine(np.unique(pairs.query[np.concatenate(drawn)]), start)
            for rows in drawn:
                query = pairs.query[rows]
                hard = [rng.choice(mined[q]) for q in query.tolist() if len(mined.get(q, ()))]
                yield Batch(query, np.concatenate([pairs.item[rows], np.array(hard, np.int64)]))

    def _mine(self, queries: NDArray[np.int64], step: int) -> dict[int, NDArray[np.int64]]:
        if self._number == 1:
            return {}
        if step:  # before the first step, the validation has just encoded the items
            self._encoded.refresh()
        return self._encoded.hard_negatives(self._pairs, queries, self._settings.mined)


def contrastive_loss(queries: Tensor, items: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Return the mean over pairs of −log softmax(cosine / τ), over the items of the batch.

    queries: unit vectors, float [B, d].
    items: unit vectors, float [B + M, d]; item b belongs to query b.
    known: whether somebody chose the item for the query, bool [B, B + M]. Such an item is no negative: it is left out
    of the softmax, unless it is the pair's own item.
    temperature: τ.
    """
    logits = queries @ items.T / temperature
    own = torch.arange(len(queries))
    others = known.clone()
    others[own, own] = False
    return F.cross_entropy(logits.masked_fill(others, -torch.inf), own)


def dense(settings: DenseSettings, dataset: DataSet, split: Split) -> Baseline:
    """Return the bi-encoder as a baseline: `settings.rounds` epochs of `settings.steps` steps.

    The untuned encoder is validated, too. Raises `BaselineError` if no training event is a search.
    """
    texts = dataset.catalogue.texts()
    pairs = Pairs.of(split, texts, settings.pairs)
    model = BiEncoder(assets.fetch(ENCODER), settings.max_tokens, settings.frozen_layers)
    encoded = EncodedCatalogue(model, texts)

    def batches(number: int) -> Round:
        return Round(settings, pairs, encoded, number)

    def loss_of(batch: Batch) -> Tensor:
        distinct, back = np.unique(batch.query, return_inverse=True)
        asked = model([pairs.queries[q] for q in distinct])[torch.from_numpy(back)]
        known = torch.tensor([[int(i) in pairs.chosen[q] for i in batch.items] for q in batch.query])
        items = model([texts[i] for i in batch.items])
        return contrastive_loss(asked, items, known, settings.temperature)

    def score(cases: Sequence[Case]) -> NDArray[np.floating]:
        return encoded.scores([case.query or "" for case in cases])

    return Baseline(
        model, settings.rounds, batches, loss_of, {Task.SEARCH: score},
        refresh=encoded.refresh, vectors=encoded.items,
    )  # fmt: skip
