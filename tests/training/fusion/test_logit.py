from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from index.pool.fusion import ITEM_SIGNALS, NOTHING_SIGNALS, UNBOUNDED, relevance
from index.sequence.events import Task
from training.fusion.logit import PRIOR, Choice, fit_weights

TASK = Task.SEARCH
ITEMS, NOTHING = len(ITEM_SIGNALS[TASK]), len(NOTHING_SIGNALS[TASK])


def draw(weights: dict[str, float], cases: int, seed: int = 0, absent: Sequence[str] = ()) -> list[Choice]:
    """Draw choices from the model that is fitted. absent: item signals that are always 0."""
    rng = np.random.default_rng(seed)
    item = np.array([weights[name] for name in ITEM_SIGNALS[TASK]])
    nothing = np.array([weights[name] for name in NOTHING_SIGNALS[TASK]])
    present = [k for k, name in enumerate(ITEM_SIGNALS[TASK]) if name not in absent]
    found = []
    for _ in range(cases):
        options = int(rng.integers(2, 30))
        signals = np.zeros((options, ITEMS))
        drawn = rng.exponential(1.0, (options, len(present)))
        signals[:, present] = drawn * (rng.random(len(present)) < 0.5)
        aside = np.array([1.0, *rng.random(NOTHING - 1)])
        shares = relevance(signals @ item, float(aside @ nothing))
        taken = rng.choice(len(shares) + 1, p=[*shares, 1 - shares.sum()])
        found.append(Choice(signals, aside, int(taken) if taken < len(shares) else None))
    return found


def test_the_weights_that_made_the_choices_are_found() -> None:
    rng = np.random.default_rng(1)
    true = {name: float(rng.uniform(0.3, 1.5)) for name in PRIOR} | {"nothing": 8.0}  # one in twenty
    found = fit_weights(TASK, draw(true, 20_000))
    apart = [abs(found[name] - true[name]) for name in found]
    assert max(apart) < 0.3
    assert np.mean(apart) < 0.08


def test_evidence_never_counts_against_an_item() -> None:
    true = {name: (-1.0 if name not in UNBOUNDED else -0.5) for name in PRIOR}
    found = fit_weights(TASK, draw(true, 2000))
    assert all(found[name] >= 0 for name in found if name not in UNBOUNDED)
    assert found["code"] == 0


def test_a_few_cases_leave_the_general_weights_almost_alone() -> None:
    # as in a bundle without a dense head
    found = fit_weights(TASK, draw(dict.fromkeys(PRIOR, 0.5), 2, absent=("dense", "fresh_dense")))
    for name, (mean, width) in PRIOR.items():
        assert found[name] == pytest.approx(mean, abs=width)


def test_no_step_from_the_weights_that_were_found_lowers_the_loss() -> None:
    choices = draw({name: (-1.0 if name not in UNBOUNDED else -0.5) for name in PRIOR}, 500)
    names = (*ITEM_SIGNALS[TASK], *NOTHING_SIGNALS[TASK])
    found = fit_weights(TASK, choices)

    def loss(weights: dict[str, float]) -> float:
        item, nothing = (
            np.array([weights[name] for name in group[TASK]]) for group in (ITEM_SIGNALS, NOTHING_SIGNALS)
        )
        total = 0.5 * sum(((weights[name] - PRIOR[name][0]) / PRIOR[name][1]) ** 2 for name in names)
        for choice in choices:
            shares = relevance(choice.signals @ item, float(choice.nothing @ nothing))
            total -= np.log(1 - shares.sum() if choice.target is None else shares[choice.target])
        return total

    least = loss(found)
    for name in names:
        for step in (-0.01, 0.01):
            moved = found[name] + step
            if name in UNBOUNDED or moved >= 0:
                assert loss(found | {name: moved}) > least - 1e-3, (name, step)


def test_a_case_of_weight_two_counts_like_two_cases() -> None:
    choices = draw(dict.fromkeys(PRIOR, 0.5), 40)
    heavy = [Choice(c.signals, c.nothing, c.target, 2.0) for c in choices]
    once, twice = fit_weights(TASK, heavy), fit_weights(TASK, [*choices, *choices])
    for name in once:
        assert once[name] == pytest.approx(twice[name], abs=1e-3)
