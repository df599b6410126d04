"""Two views of one history, of its items and of its queries, read by one transformer that both share.

Source: Xie et al., *UnifiedSSR: A Unified Framework of Sequential Search and Recommendation*, WWW 2024. Position t
stands between two events: its product token is the item of event t, its query token is the query of event t + 1, which
is the one that is asked for. In each layer a view first reads itself and then the other view:

    a = attention(x_view, x_view);  b = attention(a_view, a_other);  x_view = perceptron(b_view)

The weights of all three are those of both views. All attention is causal, so the state of position t knows the items
up to event t and the queries up to event t + 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.baselines.networks.blocks import Attention, Perceptron

PADDING = 0  # term


class TwoViewLayer(nn.Module):
    """One layer of both views."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.own = Attention(width, heads, dropout)
        self.other = Attention(width, heads, dropout)
        self.perceptron = Perceptron(width, dropout)

    def forward(self, product: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return both views, float [B, T, D] each, after the layer."""
        product, query = self.own(product), self.own(query)
        product, query = self.other(product, query), self.other(query, product)
        return self.perceptron(product), self.perceptron(query)


class TwoViews(nn.Module):
    """The transformer with its vectors of items, of terms and, if wanted, of users."""

    search_share: Tensor  # float32 scalar, the product view's share of the score of a search

    def __init__(
        self, items: int, terms: int, users: int, width: int, *,
        layers: int, heads: int, dropout: float, max_events: int,
    ) -> None:  # fmt: skip
        """Draw the first weights.

        items: size of the catalogue; row `items` stands before a history.
        terms: number of terms, `PADDING` among them.
        users: number of user vectors; 0: none.
        """
        super().__init__()
        self.dropout, self.max_events = dropout, max_events
        self.items = nn.Embedding(items + 1, width)
        self.terms = nn.EmbeddingBag(terms, width, mode="mean", padding_idx=PADDING)
        self.positions = nn.Embedding(max_events, width)
        self.users = nn.Embedding(users, width) if users else None
        for table in (self.items, self.terms, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        if self.users is not None:
            nn.init.zeros_(self.users.weight)
        self.input_norm, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(TwoViewLayer(width, heads, dropout) for _ in range(layers))
        self.boundary = nn.Linear(1, 1)  # from the likeness of neighbours to whether a session goes on
        self.register_buffer("search_share", torch.tensor(0.5))

    def states(self, rows: Tensor, terms: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of the product view and of the query view: float32 [B, T, D] each.

        rows: catalogue rows of events 0, 1, ..., int64 [B, T]; event 0 is row `items`.
        terms: terms of the queries of events 1, 2, ..., int64 [B, T, K], filled up with `PADDING`.
        users: rows of the user vectors, int64 [B]; not used if there are none.
        """
        B, T, K = terms.shape
        places = self.positions.weight[:T]
        product = self._drop(self.input_norm(self.items(rows) + places))
        asked = self.terms(terms.view(B * T, K)).view(B, T, -1)
        query = self._drop(self.input_norm(asked + places))
        for layer in self.layers:
            product, query = layer(product, query)
        product, query = self.norm(product), self.norm(query)
        if self.users is not None:
            person = self.users(users)[:, None]
            product, query = product + person, query + person
        return product, query

    def scores(self, states: Tensor) -> Tensor:
        """Return the products with the vectors of all items: [..., D] → float32 [..., items]."""
        return states @ self.items.weight[:-1].T

    def sessions(self, product: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return, for each position, the session that it ends in either view: float32 [B, T, D] each.

        A session is a window that reaches back with falling weight. Between neighbours it goes on with a probability
        that follows from their cosine, and the weight of an earlier position is the product of those between.
        """
        both = product + query
        alike = F.cosine_similarity(both[:, 1:], both[:, :-1], dim=-1)  # [B, T − 1]
        goes_on = F.logsigmoid(self.boundary(alike[..., None]).squeeze(-1))
        reach = F.pad(goes_on, (1, 0)).cumsum(1)  # [B, T]
        apart = reach[:, :, None] - reach[:, None, :]
        later = torch.ones_like(apart[0], dtype=torch.bool).triu(1)
        weights = apart.masked_fill(later, -torch.inf).softmax(-1)
        return weights @ product, weights @ query

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def correlation_loss(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return how little the two views of a session tell it from the others: the mean cross-entropy of both directions.

    one, other: sessions in the product view and in the query view, float [S, D] each.
    temperature: cosines are divided by it.
    """
    alike = F.normalize(one, dim=1) @ F.normalize(other, dim=1).T / temperature
    own = torch.arange(len(one))
    return (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
