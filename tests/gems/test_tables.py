"""Tables of rows, such as token embeddings, in subspaces of their own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gems import GEMS, GemsError, collect_knowledge, find_linears

TASKS = ("a", "b")


class Reader(nn.Module):
    """Looks tokens up and maps their vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.layer = nn.Linear(16, 8)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.layer(self.table(ids).tanh())
        return found


def make(seed: int = 0, **changes: Any) -> tuple[Reader, GEMS]:
    torch.manual_seed(seed)
    model = Reader()
    settings: dict[str, Any] = {"lr": 0.01, "rank": 4, "refresh_every": 100, "stagger": 1, "plain": []}
    return model, GEMS(model, TASKS, tables={"table": model.table.weight}, **settings | changes)


def losses(model: Reader, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 30, (2, 64), generator=generator)
    goals = torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(99))
    return {task: (model(ids[k]) - goals[k][ids[k]]).square().mean() for k, task in enumerate(TASKS)}


def train(model: Reader, optimizer: GEMS, first: int, last: int) -> list[float]:
    found = []
    for step in range(first, last):
        parts = losses(model, step)
        found.append(sum(each.item() for each in parts.values()))
        optimizer.backward(parts)
        optimizer.step()
    return found


def test_a_table_moves_within_its_subspaces_only_where_it_was_read() -> None:
    model, optimizer = make()
    before = model.table.weight.detach().clone()
    found = train(model, optimizer, 0, 60)
    assert found[-1] < 0.9 * found[0]
    moved = model.table.weight.detach() - before
    assert moved[:30].norm() > 0.1
    assert not moved[30:].any()  # no token of these rows came
    assert (
        torch.linalg.matrix_rank(moved, rtol=1e-4) <= 4 + 2 + 2
    )  # one basis of each family, never refreshed


def test_a_table_does_better_in_a_subspace_than_frozen() -> None:
    ends = []
    for tables in (True, False):
        torch.manual_seed(0)
        model = Reader()
        chosen = {"table": model.table.weight} if tables else {}
        optimizer = GEMS(model, TASKS, lr=0.01, rank=4, refresh_every=20, stagger=1, tables=chosen, plain=[])
        ends.append(train(model, optimizer, 0, 150)[-1])
    assert ends[0] < 0.9 * ends[1]


def test_a_table_takes_no_part_in_the_null_space_of_the_layers() -> None:
    torch.manual_seed(0)
    model = Reader()
    linears = find_linears(model)
    general = torch.randint(0, 10, (4, 32))
    knowledge = collect_knowledge(model, [general], linears)
    settings: dict[str, Any] = {"energy": 0.9, "cap": 0.5, "plain": [], "linears": linears}
    optimizer = GEMS(
        model, TASKS, lr=0.01, rank=4, refresh_every=20, stagger=1, knowledge=knowledge,
        tables={"table": model.table.weight}, **settings,
    )  # fmt: skip
    layer, table = model.layer.weight.detach().clone(), model.table.weight.detach().clone()
    train(model, optimizer, 0, 40)
    directions = knowledge.directions("layer.weight", 0.9, 8)
    assert ((model.layer.weight.detach() - layer) @ directions).norm() < 1e-5
    assert not torch.equal(model.table.weight.detach(), table)


def test_a_table_resumes_bit_by_bit() -> None:
    model, optimizer = make(refresh_every=7)
    train(model, optimizer, 0, 10)
    state, weights = (
        copy.deepcopy(optimizer.state_dict()),
        {k: v.clone() for k, v in model.state_dict().items()},
    )
    train(model, optimizer, 10, 25)
    other, again = make(refresh_every=7)
    other.load_state_dict(weights)
    again.load_state_dict(state)
    train(other, again, 10, 25)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_costs_and_ranks_count_a_table() -> None:
    _, optimizer = make()
    assert optimizer.ranks["table"] == {"shared": 4, "a": 2, "b": 2}
    model = Reader()
    without = GEMS(model, TASKS, lr=0.01, rank=4, refresh_every=100, stagger=1, plain=[])
    numbers = 16 * 8 + 2 * 40 * 8  # bases and moments
    assert optimizer.costs()["state_bytes"] - without.costs()["state_bytes"] == 4 * numbers


def test_what_is_no_table_is_refused() -> None:
    model = Reader()
    with pytest.raises(GemsError, match="bias has 1 dimensions; a table of rows has two"):
        GEMS(model, TASKS, lr=0.01, rank=4, tables={"bias": model.layer.bias}, plain=[])
    with pytest.raises(GemsError, match="are one weight"):
        GEMS(model, TASKS, lr=0.01, rank=4, tables={"again": model.layer.weight}, plain=[])
    with pytest.raises(GemsError, match=r"layer\.weight names two weights"):
        GEMS(model, TASKS, lr=0.01, rank=4, tables={"layer.weight": model.table.weight}, plain=[])
    model.table.weight.requires_grad_(False)
    with pytest.raises(GemsError, match="the table t is frozen"):
        GEMS(model, TASKS, lr=0.01, rank=4, tables={"t": model.table.weight}, plain=[])
