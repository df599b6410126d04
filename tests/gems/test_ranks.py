"""Ranks of the subspaces: shares of the smaller dimension, room for every family, state smaller than AdamW's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.problems import TASKS, network
from torch import nn

from gems import GEMS, GemsError, collect_knowledge
from gems.weights.ranks import Ranks

sizes = st.integers(2, 300)


@given(sizes, sizes, st.floats(0.01, 1.0), st.data())
def test_families_fit_the_gradient_and_keep_their_proportion(
    m: int, n: int, share: float, data: st.DataObject
) -> None:
    known = data.draw(st.integers(0, n - 2))
    wanted = max(1, round(share * min(m, n)))
    room = min(m, n - known)
    allotment = Ranks(rank_share=share).allot("w", (m, n), TASKS, known)
    shared, own = allotment.ranks["shared"], allotment.ranks["search"]
    assert own == allotment.ranks["recommendation"]
    assert shared >= 1
    assert own >= 1
    half = max(1, wanted // 2)
    if wanted + half <= room:
        assert allotment.fits
        assert (shared, own) == (wanted, half)
    else:
        assert not allotment.fits
        assert shared + own == room
        assert abs(shared - room * wanted / (wanted + half)) <= 1


@pytest.mark.parametrize(("share", "expected"), [(0.5, (21, 11)), (1.0, (21, 11))])
def test_tasks_are_not_starved_beside_knowledge(share: float, expected: tuple[int, int]) -> None:
    allotment = Ranks(rank_share=share).allot("w", (64, 64), TASKS, 32)
    assert (allotment.ranks["shared"], allotment.ranks["search"]) == expected


def test_a_count_is_cut_down_with_a_warning_that_says_where() -> None:
    model = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Linear(32, 4, bias=False))
    with pytest.warns(
        UserWarning, match=r"1 of 2 weights.*1\.weight \(4 × 32, 0 protected\) has 2 \+ 2"
    ) as caught:
        optimizer = GEMS(model, TASKS, lr=1e-2, rank=8)
    assert caught[0].filename == __file__
    assert optimizer.ranks["0.weight"] == {"shared": 8, "search": 4, "recommendation": 4}
    assert optimizer.ranks["1.weight"] == {"shared": 2, "search": 2, "recommendation": 2}


def test_ranks_that_fit_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GEMS(network(), TASKS, lr=1e-2, rank=3)
        GEMS(network(), TASKS, lr=1e-2, rank_share=0.25)


def test_a_weight_without_room_is_refused_with_the_numbers() -> None:
    with pytest.raises(GemsError, match=r"weight \(1 × 8, 0 directions protected\) has no room"):
        GEMS(nn.Linear(8, 1), TASKS, lr=1e-2, rank_share=0.5)
    assert GEMS(nn.Linear(8, 1), lr=1e-2, rank_share=0.5).ranks == {"weight": {"shared": 1}}


def qwen(layers: int = 2) -> nn.Module:
    """The linear layers of Qwen2.5-3B, without memory; all of its 36 blocks are alike."""
    width, inner, keys = 2048, 11008, 256
    shapes: Mapping[str, tuple[int, int]] = {
        "q": (width, width), "k": (width, keys), "v": (width, keys), "o": (width, width),
        "gate": (width, inner), "up": (width, inner), "down": (inner, width),
    }  # fmt: skip
    with torch.device("meta"):
        return nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(n, m, bias=False) for name, (n, m) in shapes.items()})
            for _ in range(layers)
        )


@pytest.mark.parametrize(
    ("settings", "most", "most_with_sites", "most_on_outputs", "most_of_a_weight"),
    [
        ({"rank_share": 0.25}, 0.51, 0.50, 0.39, 0.76),
        ({"rank_share": 0.125}, 0.26, 0.25, 0.20, 0.38),
        ({"rank": 512}, 0.52, 0.50, 0.40, 0.84),
    ],
)
@pytest.mark.filterwarnings("ignore:the ranks were cut down")  # a count of 512 does not fit the keys
def test_the_state_of_a_large_model(
    settings: dict[str, Any],
    most: float,
    most_with_sites: float,
    most_on_outputs: float,
    most_of_a_weight: float,
) -> None:
    sites = [
        [f"{k}.{name}.weight" for name in names]
        for k in range(2)
        for names in (("q", "k", "v"), ("gate", "up"))
    ]
    for changes, limit in (
        ({}, most),
        ({"sites": sites}, most_with_sites),
        ({"output_bases": True}, most_on_outputs),
    ):
        model = qwen()
        optimizer = GEMS(model, TASKS, lr=1e-4, gate="prior", **settings, **changes)
        adamw = 2 * 4 * sum(p.numel() for p in model.parameters())
        assert optimizer.costs()["state_bytes"] <= limit * adamw
        for weight in optimizer.weights:
            spaces = weight.subspaces
            state = sum(t.numel() for t in (spaces.basis, spaces.first, spaces.second))
            numbers = sum(part.parameter.numel() for part in weight.parts)
            assert state <= most_of_a_weight * 2 * numbers, weight.name


def test_bases_of_outputs_are_for_weights_with_more_of_them_and_without_knowledge() -> None:
    tall, wide = nn.Linear(8, 24, bias=False), nn.Linear(24, 8, bias=False)
    assert not GEMS(copy.deepcopy(tall), lr=1e-2, rank=2).weights[0].on_outputs
    assert GEMS(copy.deepcopy(tall), lr=1e-2, rank=2, output_bases=True).weights[0].on_outputs
    assert not GEMS(wide, lr=1e-2, rank=2, output_bases=True).weights[0].on_outputs
    knowledge = collect_knowledge(tall, [torch.randn(20, 8)], {"weight": tall})
    with pytest.raises(GemsError, match="drop output_bases"):
        GEMS(tall, lr=1e-2, rank=2, knowledge=knowledge, output_bases=True)
