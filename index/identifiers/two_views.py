"""Codebooks of two views of an item, its text and its behaviour: shared levels, then levels of each view's own.

    z = (z_t, z_b)                      latent vectors of the views, see `autoencoder`
    r = z − Σ_j b_{j,c_j}               after the shared levels, whose codes are of both views
    r_t, r_b                            each view's part of r goes on through levels of its own
    loss of the codes = Σ ‖sg[r] − b‖² + β ‖r − sg[b]‖²        over all levels

Source: GenSAR (Shi et al., arXiv 2504.05730). Differences from the paper: codes start from k-means and are balanced at
the end, as those of all quantisers here. A level of one view is stored with zeros for the other, so that the residual
rule of `codebooks` chooses by its own view alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from index.identifiers.autoencoder import Encoder, code_losses, latent_width, learn
from index.identifiers.codebooks import Codebooks
from index.identifiers.levels import fit_levels, sampled_rows

COMMITMENT = 0.25  # β


def fit_two_views(
    text: NDArray[np.float32],
    behaviour: NDArray[np.float32],
    shared: Sequence[int],
    own: Sequence[int],
    capacity: float,
    seed: int,
) -> tuple[Codebooks, Codebooks]:
    """Return codebooks of text and of behaviour, both of vectors of the two views side by side, [N, d + k].

    Their first levels are the same. On the others, the codes of behaviour are numbered after those of text.
    text: float32 [N, d].
    behaviour: float32 [N, k], finite.
    shared, own: number of codes of each shared level, and of each further level of a view. A level with fewer distinct
    residuals gets fewer codes.
    capacity: see `balancing.balance`.
    """
    rows = sampled_rows(len(text), [*shared, *own], seed)
    views = [text[rows], behaviour[rows]]
    vectors = np.concatenate(views, axis=1)
    width, whole = latent_width(text.shape[1]), slice(None)
    parts = slice(0, width), slice(width, None)

    def path(
        encoder: Encoder, part: slice, capacity: float, books: list[NDArray[np.float32]] | None
    ) -> Codebooks:
        among = [whole] * len(shared) + [part] * len(own)
        return fit_levels(encoder, vectors, [*shared, *own], capacity, seed, books, among)

    def begin(encoder: Encoder, random: torch.Generator) -> _Codes:
        first = [path(encoder, part, np.inf, None) for part in parts]
        of_text, of_behaviour = ([torch.from_numpy(book) for book in each.levels] for each in first)
        return _Codes(of_text[: len(shared)], of_text[len(shared) :], of_behaviour[len(shared) :], width)

    encoder, learned = learn(views, seed, begin)
    books: list[list[NDArray[np.float32]] | None] = [None, None]
    if learned is not None:
        both, rest = learned[: len(shared)], learned[len(shared) :]
        books = [[*both, *rest[: len(own)]], [*both, *rest[len(own) :]]]
    of_text, of_behaviour = (
        path(encoder, part, capacity, each) for part, each in zip(parts, books, strict=True)
    )
    before = (0,) * len(shared) + of_text.sizes[len(shared) :]
    return of_text, replace(of_behaviour, first=before)


class _Codes:
    """The codes of shared levels and of those of both views, learned by gradients."""

    def __init__(
        self, shared: Sequence[Tensor], text: Sequence[Tensor], behaviour: Sequence[Tensor], width: int
    ) -> None:
        self._shared = [nn.Parameter(book.clone()) for book in shared]
        self._text = [nn.Parameter(book[:, :width].clone()) for book in text]
        self._behaviour = [nn.Parameter(book[:, width:].clone()) for book in behaviour]
        self._width = width

    def quantise(self, latent: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        both, loss = _descend(latent, self._shared)
        left = latent - both.detach()
        of_text, text_loss = _descend(left[:, : self._width], self._text)
        of_behaviour, behaviour_loss = _descend(left[:, self._width :], self._behaviour)
        return both + torch.cat([of_text, of_behaviour], dim=1), loss + text_loss + behaviour_loss

    def parameters(self) -> list[nn.Parameter]:
        return [*self._shared, *self._text, *self._behaviour]

    def books(self) -> list[Tensor]:
        text = [torch.cat([book, book.new_zeros(len(book), self._other)], dim=1) for book in self._text]
        behaviour = [
            torch.cat([book.new_zeros(len(book), self._width), book], dim=1) for book in self._behaviour
        ]
        return [*self._shared, *text, *behaviour]

    @property
    def _other(self) -> int:
        """Width of the latent vectors of behaviour."""
        return self._behaviour[0].shape[1]


def _descend(residual: Tensor, books: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sum of the nearest codes of one level after the other, float [B, h], and their loss, a scalar.

    residual: float [B, h].
    books: float [K_j, h] each.
    """
    quantised, loss = torch.zeros_like(residual), torch.zeros(())
    for book in books:
        code = book[torch.cdist(residual.detach(), book.detach()).argmin(1)]
        loss = loss + code_losses(residual, code, COMMITMENT)
        quantised, residual = quantised + code, residual - code.detach()
    return quantised, loss
