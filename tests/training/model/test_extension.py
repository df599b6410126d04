"""Initial rows from titles: the mean of their token rows, however many titles there are."""

from __future__ import annotations

import pytest
import torch
from support.bundles import make_catalogue, make_tokenizer

from training.model import extension


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_rows_are_the_means_of_the_titles_tokens(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(extension, "TITLES", at_once)
    titles = [*(item.title for item in make_catalogue(7)), "", "  ", "x"]
    tokenizer = make_tokenizer(titles)
    rows = torch.randn(len(tokenizer), 5, generator=torch.Generator().manual_seed(0))
    found = extension._title_means(tokenizer, rows, titles)
    for title, mean in zip(titles, found, strict=True):
        ids = tokenizer(title, add_special_tokens=False)["input_ids"]
        expected = rows[ids].mean(0) if ids else torch.zeros(5)
        torch.testing.assert_close(mean, expected)
