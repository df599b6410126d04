"""Samples that share rows: the same losses and gradients as with a row each, nothing lost, and little padding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from support.batches import CATALOGUE, ENCODER, VOCABULARY
from support.bundles import make_model
from support.histories import histories

from index.sequence.encoder import Sample
from index.sequence.events import Event, Task
from training.loop.losses import item_losses
from training.loop.parts import Part, pad, parts_of

EVERYTHING = 10**6  # tokens


def samples(seed: int = 0, count: int = 24) -> list[Sample]:
    """Return lives of different lengths, and titles as queries, which are short."""
    rng = np.random.default_rng(seed)
    lives = histories()
    titles = [[Event(row, Task.SEARCH, CATALOGUE[row].title)] for row in rng.permutation(60)[: count // 2]]
    lives = [lives[k] for k in rng.permutation(len(lives))[: count - len(titles)]]
    return [ENCODER.sample(life[: rng.integers(1, 11)]) for life in lives] + list(map(ENCODER.sample, titles))


def losses_and_gradients(
    parts: list[Part], arch: str, attention: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model = make_model(VOCABULARY.size, arch)
    model.set_attn_implementation(attention)
    model.train()
    for part in parts:
        sums = item_losses(model, VOCABULARY, part, "level")
        sum((2 if task is Task.SEARCH else 1) * total for task, total in sums.items()).backward()
    with torch.no_grad():
        sums = [item_losses(model, VOCABULARY, part, "level") for part in parts]
    totals = [sum(float(each.get(task, 0)) for each in sums) for task in Task]
    return torch.tensor(totals), [each.grad for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("arch", ["llama", "gpt-neox", "qwen2", "qwen3"])
def test_no_sample_sees_another(arch: str, attention: str) -> None:
    some = samples()
    (part,) = parts_of(some, EVERYTHING, 1)
    assert part.position is not None
    assert len(part.ids) < len(some)
    alone = losses_and_gradients([pad([sample]) for sample in some], arch, attention)
    shared = losses_and_gradients([part], arch, attention)
    torch.testing.assert_close(shared[0], alone[0], rtol=1e-4, atol=1e-3)
    for found, expected in zip(shared[1], alone[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("budget", "least"), [(EVERYTHING, 1), (400, 1), (1, 1), (EVERYTHING, 2), (300, 3), (1, 99)]
)
def test_every_token_is_there_once_and_rows_are_short(seed: int, budget: int, least: int) -> None:
    some = samples(seed)
    parts = parts_of(some, budget, least)
    longest = max(map(len, some))
    assert len(parts) >= min(least, len(some))
    assert all(part.ids.shape[1] <= longest for part in parts)
    assert all(part.ids.numel() <= budget or len(part.ids) == 1 for part in parts)
    found: Counter[tuple[int, ...]] = Counter()
    for part in parts:
        for k, row in enumerate(part.ids.tolist()):
            begins = [0] if part.position is None else torch.nonzero(part.position[k] == 0).flatten().tolist()
            found.update(tuple(row[a:b]) for a, b in zip(begins, [*begins[1:], None], strict=True))
    expected = Counter(tuple(sample.ids.tolist()) for sample in some)
    if all(part.position is not None for part in parts):
        assert not expected - found  # what else is there is padding
        assert all(set(row) == {0} for row in found - expected)


def test_hardly_any_padding_is_computed() -> None:
    some = samples(count=40)
    (part,) = parts_of(some, EVERYTHING, 1)
    tokens = sum(map(len, some))
    assert part.ids.numel() < 1.25 * tokens
    assert pad(some).ids.numel() > 1.6 * tokens


def test_samples_of_one_length_keep_a_row_each_and_the_plain_forward_pass() -> None:
    one = samples()[0]
    (part,) = parts_of([one, one, one], EVERYTHING, 1)
    assert part.position is None
    assert part.ids.shape == (3, len(one))
