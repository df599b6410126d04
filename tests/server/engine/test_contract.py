"""Requests that are refused, each with one line that says why, and what a request may cost."""

from __future__ import annotations

import numpy as np
import pytest

from index.trie.allowed import Allowed
from index.trie.trie import Trie
from server.engine.contract import EngineError, RankRequest

EVERYTHING = Allowed.of(Trie.build(np.arange(12).reshape(4, 3)))  # four items, three levels


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": []}, "no token"),
        ({"limit": 0}, "at least 1, got 0 and 5"),
        ({"beam_width": 0}, "at least 1, got 5 and 0"),
        ({"levels": 0}, "at least 1, got 0"),
        ({"levels": -1}, "at least 1, got -1"),
        ({"pool": [3, 1, 3]}, "more than once"),
    ],
)
def test_a_request_that_can_never_be_ranked_is_refused_where_it_is_made(
    fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(EngineError, match=reason):
        RankRequest(**{"prompt": [1], "limit": 5, "beam_width": 5, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"levels": 4}, "at most 3"),
        ({"pool": [0, 4]}, "0 to 4; the rows of this index version are 0 to 3"),
        ({"pool": [-1]}, "-1 to -1; the rows"),
        ({"prompt": [1] * 8}, "no room for 3 codes"),
        ({"prompt": [1] * 9, "levels": 2}, "no room for 2 codes"),
    ],
)
def test_a_request_that_does_not_fit_the_index_or_the_model_is_refused(
    fields: dict[str, object], reason: str
) -> None:
    request = RankRequest(**{"prompt": [1], "limit": 5, "beam_width": 5, **fields})  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=reason):
        request.check_fits(EVERYTHING, 3, 10)


def test_requests_at_the_bounds_fit() -> None:
    for request in (
        RankRequest([1] * 7, 5, 5, pool=range(4)),
        RankRequest([1] * 9, 5, 5, levels=1),
        RankRequest([1] * 7, 5, 5, levels=3),
    ):
        request.check_fits(EVERYTHING, 3, 10)


def test_positions_are_those_of_prompt_beams_and_pool() -> None:
    assert RankRequest([1] * 10, 5, 20).positions(4) == 10 + 3 * 20
    assert RankRequest([1] * 10, 5, 20, pool=[1, 2]).positions(4) == 10 + 3 * 22
    assert RankRequest([1] * 10, 5, 20, pool=[1, 2], levels=3).positions(4) == 10 + 2 * 22
    assert RankRequest([1] * 10, 5, 20, pool=[1, 2], levels=1).positions(4) == 10
