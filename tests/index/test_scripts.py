"""Shares of writing systems."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.scripts import main_script, shares


@pytest.mark.parametrize(
    ("texts", "expected", "main"),
    [
        (["广州早茶", "abcd"], {"Han": 0.5, "Latin": 0.5}, None),
        (["Toy Story 2 (1999)"], {"Latin": 1.0}, "Latin"),
        (["食パンã"], {"Katakana": 0.5, "Han": 0.25, "Latin": 0.25}, None),
        (["книга", "a"], {"Cyrillic": 5 / 6, "Latin": 1 / 6}, "Cyrillic"),
        (["ქართული"], {"other": 1.0}, "other"),
        (["12 34 …", ""], {}, None),
    ],
)
def test_shares(texts: list[str], expected: dict[str, float], main: str | None) -> None:
    found = shares(texts)
    assert found == pytest.approx(expected)
    assert main_script(found) == main
    assert list(found.values()) == sorted(found.values(), reverse=True)


@given(st.lists(st.text(max_size=20), max_size=5))
def test_shares_add_up(texts: list[str]) -> None:
    found = shares(texts)
    assert sum(found.values()) == pytest.approx(1 if any(map(str.isalpha, "".join(texts))) else 0)
