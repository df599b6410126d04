"""LETTER: an RQ-VAE whose codes also follow behaviour, and spread evenly (Wang et al., arXiv 2405.07314).

    loss of the codes = Σ_j ‖sg[r_j] − b_{j,c_j}‖² + β ‖r_j − sg[b_{j,c_j}]‖²            quantisation
                      + d α · mean_i −log softmax_k ⟨q_i, h_k⟩ at k = i                   collaborative alignment
                      + d γ · Σ_j mean_i −log softmax_{k ≠ c} ⟨b_{j,c}, b_{j,k}⟩ at k⁺    diversity

h_i is the vector that a recommender has learned for item i, and the softmax of the alignment is over the items of the
batch that anybody chose. c is the code of item i at level j, and k⁺ another code of its group: the codes of a level
are clustered into `GROUPS` groups of nearly equal size. α and γ are those of the paper, whose squared errors are means
over the d dimensions of an item's vector; here they are sums.

Differences from the paper: the limit on the items of a code holds for every level (`balancing`), not for the last one
alone. The rest is in `autoencoder`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from index.identifiers.autoencoder import code_losses, fit_autoencoder, straight_through
from index.identifiers.balancing import balance
from index.identifiers.codebooks import Codebooks, costs
from index.identifiers.identifiers import IdentifierError
from index.identifiers.levels import k_means

COMMITMENT = 0.25  # β
ALIGNMENT = 0.01  # α
DIVERSITY = 1e-4  # γ
GROUPS = 10  # of the codes of a level
GROUP_EVERY = 50  # steps between two clusterings of the codes


def fit(
    vectors: NDArray[np.float32],
    sizes: Sequence[int],
    capacity: float,
    seed: int,
    *,
    behaviour: NDArray[np.float32] | None = None,
    alignment: float = ALIGNMENT,
    diversity: float = DIVERSITY,
) -> Codebooks:
    """Return codebooks for vectors; see `registry.Quantiser`. alignment, diversity: α and γ.

    Raises `IdentifierError` without behaviour, and if nobody chose any item.
    """
    if behaviour is None:
        raise IdentifierError("quantiser 'letter' needs behaviour vectors of the items")
    if not np.isfinite(behaviour).all(axis=1).any():
        raise IdentifierError("quantiser 'letter' needs behaviour, and nobody chose any item")
    dimensions = vectors.shape[1]

    def start(books: list[Tensor], rows: NDArray[np.int64], random: torch.Generator) -> _AlignedCodes:
        leading = _leading(behaviour, books[0].shape[1])[rows]
        return _AlignedCodes(
            books, torch.from_numpy(leading), dimensions * alignment, dimensions * diversity, random
        )

    return fit_autoencoder(vectors, sizes, capacity, seed, start)


def _leading(behaviour: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return the leading principal components of the behaviour, with a variance of 1 on average: float32 [N, width].

    Items without behaviour keep NaN. With fewer than `width` components the others are zero.
    """
    known = behaviour[np.isfinite(behaviour).all(axis=1)].astype(np.float64)
    centred = behaviour - known.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(known, rowvar=False, bias=True).reshape(behaviour.shape[1], -1))
    components = centred @ directions[:, ::-1][:, :width]
    components /= max(float(np.nanstd(components)), 1e-12)
    return np.pad(components, ((0, 0), (0, width - components.shape[1]))).astype(np.float32)


class _AlignedCodes:
    """The codes of all levels, learned by gradients."""

    def __init__(
        self,
        books: Sequence[Tensor],
        behaviour: Tensor,
        alignment: float,
        diversity: float,
        random: torch.Generator,
    ) -> None:
        self._levels = [nn.Parameter(book.clone()) for book in books]
        self._behaviour, self._alignment, self._diversity = behaviour, alignment, diversity
        self._random, self._steps = random, 0
        self._groups: list[Tensor] = []

    def quantise(self, latent: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self._steps % GROUP_EVERY == 0:
            self._groups = [groups_of(book.detach().numpy()) for book in self._levels]
        self._steps += 1
        residual, quantised, loss = latent, torch.zeros_like(latent), torch.zeros(())
        for book, group in zip(self._levels, self._groups, strict=True):
            chosen = torch.cdist(residual.detach(), book.detach()).argmin(1)
            code = book[chosen]
            loss = loss + code_losses(residual, code, COMMITMENT)
            if self._diversity:
                loss = loss + self._diversity * diversity_loss(book, chosen, group, self._random)
            quantised, residual = quantised + code, residual - code.detach()
        if self._alignment:
            aligned = alignment_loss(straight_through(latent, quantised), self._behaviour[rows])
            loss = loss + self._alignment * aligned
        return quantised, loss

    def parameters(self) -> list[nn.Parameter]:
        return self._levels

    def books(self) -> list[Tensor]:
        return list(self._levels)


def alignment_loss(quantised: Tensor, behaviour: Tensor) -> Tensor:
    """Return the mean over items with behaviour of −log softmax ⟨q_i, h_k⟩ at k = i; zero if there are none.

    quantised: float [B, h].
    behaviour: float [B, h]; rows of NaN are items without behaviour.
    """
    known = behaviour.isfinite().all(1)
    if not known.any():
        return quantised.new_zeros(())
    logits = quantised[known] @ behaviour[known].T
    return F.cross_entropy(logits, torch.arange(len(logits)))


def diversity_loss(book: Tensor, chosen: Tensor, group: Tensor, random: torch.Generator) -> Tensor:
    """Return the mean over items of −log softmax of a code's products with the others, at one of its own group.

    book: the codes of a level, float [K, h].
    chosen: code of each item, int64 [B].
    group: group of each code, int64 [K]. Codes that are alone in their group are left out.
    """
    same = group[chosen, None] == group  # [B, K]
    same[torch.arange(len(chosen)), chosen] = False
    several = same.any(1)
    if not several.any():
        return book.new_zeros(())
    own = chosen[several]
    friend = torch.multinomial(same[several].float(), 1, generator=random).squeeze(1)
    logits = (book[own] @ book.T).scatter(1, own[:, None], -torch.inf)
    return F.cross_entropy(logits, friend)


def groups_of(book: NDArray[np.float32]) -> Tensor:
    """Return the group of each code, int64 [K]: k-means whose groups have nearly the same number of codes."""
    centres, prices = balance(book, k_means(book, GROUPS, 0), 1.0)
    return torch.from_numpy(costs(book, centres, prices).argmin(axis=1))
