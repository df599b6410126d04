"""Item rows that are the sum of a part of their own and one that the item's text decides.

    E_i = O_i + P x̂_i          O_i is learned for item i alone, x̂_i is its vector, and all items share the map P

An item with few events learns little of its own, and P tells it what the model has learned of similar ones. While the
model is trained, its token tables hold O, and P x̂ is added where they are read, inside of `added`. `folded` puts the
sums into the tables, for everything that reads them as plain weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from training.config import TrainConfig
from training.model.rows import token_embeddings

NAME = "text_part"  # of the part of a model
LONGEST = 4  # times the median: longer vectors are shortened


class TextPart(nn.Module):
    """The maps P of a model's token tables, [d, d_x]: one for a tied model, else one for input and one for output.

    They begin as the maps that fit the initial rows best, so that these stay the same. The maps are a part of the
    model until `finish`, and so are saved and updated like all of its weights.
    """

    vectors: Tensor

    def __init__(self, model: PreTrainedModel, first: int, vectors: NDArray[np.float32]) -> None:
        """Divide the rows of a model's tokens from `first` on.

        vectors: of the items of these tokens, float32 [N, d_x].
        """
        super().__init__()
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        centred = _scaled(vectors)
        self.register_buffer("vectors", centred.to(embedding.weight.device), persistent=False)
        self._first, self._last = first, first + len(vectors)
        self._tables = [embedding.weight]
        if head.weight is not embedding.weight:
            self._tables.append(head.weight)
        self._read: list[Tensor] | None = None
        self.maps = nn.ParameterList(nn.Parameter(_fitted(centred, own)) for own in self._own())
        with torch.no_grad():
            for own, text in zip(self._own(), self._texts(), strict=True):
                own.sub_(text)
        model.add_module(NAME, self)
        self._hooks = [each.register_forward_hook(self._look_up) for each in token_embeddings(model)]

    @contextmanager
    def added(self) -> Iterator[None]:
        """Add the part of the text wherever rows are read inside the block: by the embedding, and by `head`."""
        self._read = self._texts()
        try:
            yield
        finally:
            self._read = None

    def head(self, first: int, last: int) -> Tensor:
        """Return the part of the text of output rows, [last − first, d]; inside `added`.

        first, last: range of tokens. Tokens that are no items have zeros. All items are among the tokens.
        """
        assert self._read is not None
        assert first <= self._first
        assert last >= self._last
        return F.pad(self._read[-1], (0, 0, self._first - first, last - self._last))

    @contextmanager
    def folded(self) -> Iterator[None]:
        """Hold the sums in the token tables inside the block. Afterwards they are what they were, bit for bit."""
        kept = [own.clone() for own in self._own()]
        self._fold()
        try:
            yield
        finally:
            for own, before in zip(self._own(), kept, strict=True):
                own.copy_(before)

    def finish(self, model: PreTrainedModel) -> None:
        """Put the sums into the token tables for good, and make the model a plain one again."""
        self._fold()
        for hook in self._hooks:
            hook.remove()
        delattr(model, NAME)

    def _own(self) -> list[Tensor]:
        return [table.data[self._first : self._last] for table in self._tables]

    def _texts(self) -> list[Tensor]:
        return [self.vectors @ each.T for each in self.maps]

    @torch.no_grad()
    def _fold(self) -> None:
        for own, text in zip(self._own(), self._texts(), strict=True):
            own.add_(text)

    def _look_up(self, _: nn.Module, inputs: tuple[Any, ...], found: Tensor) -> Tensor:
        if self._read is None:
            return found
        ids = inputs[0]
        is_item = ((ids >= self._first) & (ids < self._last)).unsqueeze(-1)
        text = F.embedding((ids - self._first).clamp(0, len(self.vectors) - 1), self._read[0])
        return found + torch.where(is_item, text, 0.0)


def _scaled(vectors: NDArray[np.float32]) -> Tensor:
    """Return x̂: vectors minus their mean, with a mean sum of absolute values of 1, float32 [N, d_x].

    A step of Adam then moves a row about as far by its text as by its own part; much longer vectors are shortened.
    """
    if not vectors.any():
        return torch.zeros(vectors.shape)
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    sums = np.abs(centred).sum(axis=1, keepdims=True)
    if not sums.any():  # all vectors are the same
        return torch.zeros(vectors.shape)
    centred *= np.minimum(1, LONGEST * np.median(sums[sums > 0]) / np.maximum(sums, 1e-30))
    return torch.from_numpy((centred / np.abs(centred).sum(axis=1).mean()).astype(np.float32))


def _fitted(vectors: Tensor, rows: Tensor) -> Tensor:
    """Return P, [d, d_x], that minimises Σ_i ‖rows_i − P vectors_i‖². vectors: [N, d_x]. rows: [N, d].

    By float64, so that two runs begin with the same numbers: LAPACK's last bits may differ. Directions in which the
    vectors hardly differ are left out. On the meta device there is nothing to fit.
    """
    if rows.is_meta:
        return rows.new_empty(rows.shape[1], vectors.shape[1])
    x, y = vectors.double().numpy(), rows.double().cpu().numpy()
    found, *_ = np.linalg.lstsq(x.T @ x, x.T @ y, rcond=1e-8)
    return torch.from_numpy(found.T.copy()).to(rows)


def divides_rows(model: PreTrainedModel, config: TrainConfig, *, levels: int, spelled: bool) -> bool:
    """Whether a training divides the rows of items: only where one token names one item.

    Not where rates follow the size of a weight, since the own parts are small at first; nor where an embedding does
    more than look up.
    """
    one_token = levels == 1 and not spelled
    plain = type(model.get_input_embeddings()) is nn.Embedding
    return config.identifiers.text_part and one_token and plain and not config.optimiser.relative


def maps_of(model: nn.Module) -> list[nn.Parameter]:
    """Return the maps of a model's text part; none if it has no such part."""
    return list(model.get_submodule(NAME).parameters()) if hasattr(model, NAME) else []
