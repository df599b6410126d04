"""LETTER's alignment and diversity, and the separate parts of product quantisation."""

from __future__ import annotations

from itertools import product as all_pairs

import numpy as np
import pytest
import torch

from index.identifiers.codebooks import Codebooks
from index.identifiers.identifiers import IdentifierError
from index.identifiers.quantisers import letter, product, rqvae
from index.identifiers.quantisers.kmeans import principal

ITEMS, GROUPS = 480, 6


def two_views() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items whose texts show a theme clearly and their audience faintly, behaviour by audience, and the audiences."""
    rng = np.random.default_rng(0)
    theme, audience = np.arange(ITEMS) % 8, np.arange(ITEMS) // 8 % GROUPS
    centres, hints = rng.normal(size=(8, 32)), rng.normal(size=(GROUPS, 32))
    texts = centres[theme] * 2 + hints[audience] * 0.7 + rng.normal(size=(ITEMS, 32)) * 0.5
    taste = rng.normal(size=(GROUPS, 16)) * 2
    behaviour = taste[audience] + rng.normal(size=(ITEMS, 16)) * 0.3
    behaviour[::10] = np.nan  # nobody chose them
    return texts.astype(np.float32), behaviour.astype(np.float32), audience


def agreement(codes: np.ndarray, groups: np.ndarray) -> float:
    """Share of the pairs of items with the same first code that are of one group."""
    same_code = codes[:, None, 0] == codes[None, :, 0]
    np.fill_diagonal(same_code, False)
    return float((groups[:, None] == groups[None])[same_code].mean())


def test_codes_of_letter_tell_more_about_behaviour_than_those_of_the_rqvae() -> None:
    texts, behaviour, audience = two_views()
    plain = agreement(rqvae.fit(texts, (12, 12), 2.0, 0).quantise(texts), audience)
    apart = letter.fit(texts, (12, 12), 2.0, 0, behaviour=behaviour, alignment=0.0)
    aligned = letter.fit(texts, (12, 12), 2.0, 0, behaviour=behaviour, alignment=0.3)
    assert agreement(aligned.quantise(texts), audience) > 1.5 * max(
        plain, agreement(apart.quantise(texts), audience)
    )
    unseen = np.arange(ITEMS) % 10 == 0  # they had texts alone
    assert agreement(aligned.quantise(texts[unseen]), audience[unseen]) > 1.2 * plain


def spread(book: torch.Tensor, group: torch.Tensor) -> float:
    """Mean product of codes of one group less that of all codes."""
    products = book @ book.T
    same = group[:, None] == group[None]
    same.fill_diagonal_(False)
    return float(products[same].mean() - products.mean())


def test_the_diversity_loss_draws_a_code_towards_its_group_and_away_from_the_others() -> None:
    book = torch.randn(
        40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    group, chosen = letter.groups_of(book.detach().float().numpy()), torch.arange(40)
    before = spread(book.detach(), group)
    random = torch.Generator().manual_seed(1)
    for _ in range(20):
        (slope,) = torch.autograd.grad(letter.diversity_loss(book, chosen, group, random), book)
        book = (book - 0.5 * slope).detach().requires_grad_()
    assert spread(book.detach(), group) > before + 0.1


def test_diversity_spreads_items_over_the_codes() -> None:
    rng = np.random.default_rng(0)
    texts = rng.standard_exponential((600, 1)) * rng.normal(size=(600, 16))  # most items are near the centre
    behaviour = rng.normal(size=(600, 8)).astype(np.float32)

    def entropy(diversity: float) -> float:
        fitted = letter.fit(
            texts.astype(np.float32),
            (32,),
            np.inf,
            0,
            behaviour=behaviour,
            alignment=0.0,
            diversity=diversity,
        )
        use = np.bincount(fitted.quantise(texts.astype(np.float32))[:, 0], minlength=32) / 600
        return float(-(use[use > 0] * np.log(use[use > 0])).sum())

    assert entropy(0.05) > entropy(0.0)


def test_groups_of_codes_have_nearly_equal_sizes() -> None:
    book = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    book[:40] *= 0.01  # most codes in one place
    sizes = np.bincount(letter.groups_of(book).numpy(), minlength=letter.GROUPS)
    assert sizes.max() <= 2 * 64 / letter.GROUPS


def test_codes_and_items_that_are_alone_have_no_loss() -> None:
    book = torch.eye(4)
    assert letter.diversity_loss(book, torch.arange(4), torch.arange(4), torch.Generator()) == 0
    assert letter.alignment_loss(book, torch.full((4, 4), torch.nan)) == 0


def test_the_alignment_is_over_items_that_somebody_chose() -> None:
    rng = torch.Generator().manual_seed(0)
    quantised, behaviour = torch.randn(6, 4, generator=rng), torch.randn(6, 4, generator=rng)
    whole = letter.alignment_loss(quantised[:4], behaviour[:4])
    behaviour[4:] = torch.nan
    assert torch.equal(letter.alignment_loss(quantised, behaviour), whole)


@pytest.mark.parametrize("behaviour", [None, np.full((ITEMS, 4), np.nan, np.float32)])
def test_letter_without_behaviour_is_refused(behaviour: np.ndarray | None) -> None:
    with pytest.raises(IdentifierError, match="behaviour"):
        letter.fit(two_views()[0], (8, 8), 2.0, 0, behaviour=behaviour)


def test_every_level_of_product_quantisation_codes_its_own_components() -> None:
    texts = two_views()[0]
    books = product.fit(texts, (8, 4, 4), 2.0, 0)
    used = np.array([(book != 0).any(axis=0) for book in books.levels])
    assert (used.sum(axis=0) <= 1).all()  # no component belongs to two levels
    assert used.any(axis=1).all()
    encoded, codes = books.encode(texts), books.quantise(texts)
    for level, (book, price) in enumerate(zip(books.levels, books.prices, strict=True)):
        own = used[level]
        distance = ((encoded[:, None, own] - book[None, :, own]) ** 2).sum(axis=2) + price
        assert np.array_equal(codes[:, level], distance.argmin(axis=1))
        alone = Codebooks(books.encoder, (book,), (price,))  # in any order, the same codes
        assert np.array_equal(alone.quantise(texts)[:, 0], codes[:, level])


def test_components_are_divided_as_evenly_as_any_greedy_order_can() -> None:
    variance = np.array([16.0, 8.0, 4.0, 2.0, 1.0, 1.0])
    parts = product.allocate(variance, 2)
    assert sorted(np.concatenate(parts).tolist()) == [0, 1, 2, 3, 4, 5]
    assert max(map(len, parts)) == 3
    products = [float(np.log(variance[part]).sum()) for part in parts]
    best = min(
        abs(
            np.log(variance[list(chosen)]).sum()
            - np.log(variance[[k for k in range(6) if k not in chosen]]).sum()
        )
        for chosen in all_pairs(range(6), repeat=3)
        if len(set(chosen)) == 3
    )
    assert abs(products[0] - products[1]) <= best + np.log(2) + 1e-9
    assert product.allocate(np.array([1.0]), 3)[1].tolist() == []  # fewer components than levels


def test_product_quantisation_needs_no_more_components_than_there_are() -> None:
    line = np.linspace(0, 1, 64, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    books = product.fit(line, (8, 8), np.inf, 0)
    assert books.sizes[0] == 8
    assert len(principal(line, (8, 8))[0].bias) >= 1
