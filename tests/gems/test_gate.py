"""The gate: weights, prior, features, and training by the hypergradient."""

from __future__ import annotations

import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gems import Gate, GemsError

TASKS = ("search", "recommendation")
positive = st.floats(1e-3, 1e3)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


def everyone(tasks: int = 2) -> Tensor:
    return torch.ones(tasks, dtype=torch.bool)


def observed(
    losses: list[tuple[float, ...]], kind: str = "hypergradient", temperature: float = 1.5, seed: int = 0
) -> Gate:
    """Return a gate that has observed losses, norms and samples. Later losses are relative to the first ones."""
    tasks = tuple(f"task {k}" for k in range(len(losses[0])))
    gate = Gate(tasks, kind, temperature=temperature, seed=seed)
    for row in losses:
        norms = torch.arange(1.0, len(row) + 1)
        gate.observe(tensor(*row), norms, norms.flip(0), everyone(len(row)))
    return gate


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.data(),
    st.sampled_from(["hypergradient", "prior", "uniform"]),
    st.floats(0.05, 20.0),
)
def test_weights_are_positive_and_add_up_to_one(
    tasks: int, data: st.DataObject, kind: str, temperature: float
) -> None:
    rows = data.draw(st.lists(st.tuples(*[positive] * tasks), min_size=1, max_size=4))
    gate = observed(rows, kind, temperature)
    gate.learn(torch.linspace(-1, 1, tasks))
    weights = gate.weights()
    assert weights.shape == (tasks,)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert bool((weights >= 0).all())
    assert not weights.requires_grad


def test_uniform_gives_every_task_the_same_whatever_it_sees() -> None:
    gate = observed([(1.0, 1.0, 1.0), (0.1, 9.0, 3.0)], "uniform")
    for _ in range(5):
        gate.learn(tensor(1.0, -1.0, 0.0))
    assert torch.equal(gate.weights(), torch.full((3,), 1 / 3))


def test_before_anything_is_seen_all_weights_are_equal() -> None:
    for kind in ("hypergradient", "prior", "uniform"):
        assert torch.equal(Gate(TASKS, kind).weights(), tensor(0.5, 0.5))


@settings(max_examples=60, deadline=None)
@given(positive, positive, positive, positive)
def test_the_prior_is_the_softmax_of_minus_the_share_of_the_relative_loss(
    first_a: float, first_b: float, later_a: float, later_b: float
) -> None:
    gate = observed([(first_a, first_b), (later_a, later_b)], "prior", temperature=0.7)
    share = (later_a / first_a) / (later_a / first_a + later_b / first_b)
    mean = (0.5 + share) / 2  # of two steps; in the first, both tasks are at their own start
    expected = 1 / (1 + math.exp((2 * mean - 2 * (1 - mean)) / 0.7))
    a, b = gate.weights().tolist()
    assert a == pytest.approx(expected, abs=1e-4)
    if abs(share - 0.5) > 1e-4:
        assert (a < b) == (later_a / first_a > later_b / first_b)  # relative, not absolute, losses count


def test_features_are_smoothed_shares() -> None:
    gate = Gate(TASKS, "prior", temperature=1.0)
    shares = []
    for step in range(30):
        losses = tensor(2.0, 4.0) * tensor(1.0, 0.5 + step / 30)
        gate.observe(losses, tensor(1.0, 3.0), tensor(10.0, 30.0), everyone())
        relative = losses / tensor(2.0, 2.0)
        shares.append(float(relative[1] / relative.sum()))
    average = 0.0
    for k, share in enumerate(shares):
        decay = min(0.9, k / (k + 1))
        average = decay * average + (1 - decay) * share
    features = gate.state_dict()["features"]
    assert float(features[1, 0]) == pytest.approx(average, abs=1e-5)
    assert features[1, 1:].tolist() == pytest.approx([0.75, 0.75])
    assert torch.allclose(features.sum(0), torch.ones(3))


def test_samples_that_nobody_gives_are_even() -> None:
    gate = Gate(TASKS)
    gate.observe(tensor(1.0, 2.0), tensor(1.0, 1.0), tensor(0.0, 0.0), everyone())
    assert gate.state_dict()["features"][:, 2].tolist() == [0.5, 0.5]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(positive, positive, positive), min_size=1, max_size=5),
    st.floats(0.05, 5.0),
    st.integers(0, 9),
)
def test_an_untrained_learning_gate_is_the_prior_exactly(
    rows: list[tuple[float, ...]], temperature: float, seed: int
) -> None:
    learning = observed(rows, "hypergradient", temperature, seed)
    assert torch.equal(learning.weights(), observed(rows, "prior", temperature).weights())


def softmax_of_scores(gate: Gate, temperature: float) -> Tensor:
    """Return α with its graph, computed from the formulas of the module's docstring."""
    features = gate.state_dict()["features"]
    scores = gate._perceptron(features).squeeze(1) + gate._bias - (features.shape[0] * features[:, 0] - 1)
    return torch.softmax(scores / temperature, dim=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 4), st.integers(0, 1000), st.floats(0.2, 4.0))
def test_the_gradient_is_that_of_the_linearised_loss(tasks: int, seed: int, temperature: float) -> None:
    """Return ∂/∂φ of Σ_i h_i α_i(φ), by autograd through the softmax and the perceptron."""
    rng = torch.Generator().manual_seed(seed)
    rows = [tuple((torch.rand(tasks, generator=rng) + 0.1).tolist()) for _ in range(3)]
    gate = observed(rows, temperature=temperature)
    for _ in range(3):  # away from the start, where half of φ's gradient is zero
        gate.learn(0.1 * torch.randn(tasks, generator=rng))
    h = torch.randn(tasks, generator=rng)
    parameters = [*gate._perceptron.parameters(), gate._bias]
    expected = torch.autograd.grad((h * softmax_of_scores(gate, temperature)).sum(), parameters)
    before = gate.weights()
    gate.learn(h)
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert any(float(gradient.abs().max()) > 1e-6 for gradient in expected)
    assert not torch.equal(gate.weights(), before)


def test_two_tasks_follow_the_formula_of_the_design() -> None:
    """Check ∂L/∂o_a = α_a α_b (h_a − h_b) / τ = −∂L/∂o_b."""
    gate = observed([(1.0, 1.0), (0.3, 0.9)], temperature=0.8)
    a, b = gate.weights().tolist()
    gate.learn(tensor(-0.5, 0.2))
    # the last bias hears the sum of both scores' gradients, which is zero, the last weights their difference
    last = gate._perceptron[2]
    assert float(last.bias.grad) == pytest.approx(0, abs=1e-7)
    hidden = torch.relu(gate._perceptron[0](gate.state_dict()["features"]))
    expected = a * b * (-0.5 - 0.2) / 0.8 * (hidden[0] - hidden[1])
    # the first layer has moved by nothing: its gradient passes through weights that were zero
    assert torch.allclose(last.weight.grad[0], expected, atol=1e-6)


@pytest.mark.parametrize("winner", [0, 1])
def test_a_task_whose_updates_help_more_gains_weight(winner: int) -> None:
    gate = observed([(1.0, 1.0)])  # equal losses, so the prior is even; the norms tell the tasks apart
    assert gate.weights().tolist() == pytest.approx([0.5, 0.5])
    h = tensor(0.3, 0.3)
    h[winner] = -0.3
    history = [0.5]
    for _ in range(60):
        gate.learn(h)
        history.append(float(gate.weights()[winner]))
    assert history == sorted(history)
    assert history[-1] > 0.9
    for _ in range(200):  # the gate can also turn back
        gate.learn(-h)
    assert float(gate.weights()[winner]) < 0.5


def test_equal_sensitivities_teach_nothing() -> None:
    gate = observed([(1.0, 1.0), (0.5, 0.9)])
    before = gate.weights()
    for _ in range(20):
        gate.learn(tensor(0.7, 0.7))
    assert torch.allclose(gate.weights(), before, atol=1e-6)


@pytest.mark.parametrize("kind", ["prior", "uniform"])
def test_only_the_hypergradient_gate_learns(kind: str) -> None:
    gate = observed([(1.0, 1.0), (0.5, 0.9)], kind)
    before = gate.weights()
    for _ in range(20):
        gate.learn(tensor(-1.0, 1.0))
    assert torch.equal(gate.weights(), before)


def test_temperature_sets_how_sharp_the_weights_are() -> None:
    rows = [(1.0, 1.0), (0.2, 0.9)]
    sharp, middle, even = (
        float(observed(rows, "prior", temperature).weights()[0]) for temperature in (0.01, 1.0, 1000.0)
    )
    assert sharp > 1 - 1e-6
    assert 0.55 < middle < 0.9
    assert even == pytest.approx(0.5, abs=1e-3)


def test_a_step_without_a_task_leaves_the_features() -> None:
    gate = observed([(1.0, 1.0), (0.4, 0.9)])
    before = gate.state_dict()["features"].clone()
    gate.observe(tensor(5.0, 0.0), tensor(9.0, 0.0), tensor(3.0, 0.0), torch.tensor([True, False]))
    assert torch.equal(gate.state_dict()["features"], before)


def test_a_task_that_comes_later_is_measured_by_its_own_first_loss() -> None:
    gate = Gate(TASKS, "prior")
    only = torch.tensor([True, False])
    gate.observe(tensor(4.0, 0.0), tensor(1.0, 0.0), tensor(1.0, 0.0), only)
    gate.observe(tensor(2.0, 0.0), tensor(1.0, 0.0), tensor(1.0, 0.0), only)
    assert gate.weights().tolist() == [0.5, 0.5]
    gate.observe(tensor(2.0, 30.0), tensor(1.0, 1.0), tensor(1.0, 1.0), everyone())
    assert gate.state_dict()["initial"].tolist() == [4.0, 30.0]
    assert gate.state_dict()["features"][:, 0].tolist() == pytest.approx([1 / 3, 2 / 3])  # ½ and 1


@pytest.mark.parametrize("kind", ["hypergradient", "prior", "uniform"])
def test_a_saved_gate_goes_on_exactly(kind: str) -> None:
    def go_on(gate: Gate) -> list[Tensor]:
        history = []
        for step in range(10):
            gate.learn(tensor(0.1 * step, -0.2))
            gate.observe(tensor(1.0, 1.0 + step), tensor(1.0, 2.0), tensor(3.0, 1.0), everyone())
            history.append(gate.weights())
        return history

    gate = Gate(TASKS, kind, seed=3)
    go_on(gate)
    file = io.BytesIO()
    torch.save(gate.state_dict(), file)
    expected = go_on(gate)
    file.seek(0)
    again = Gate(TASKS, kind, seed=99)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(go_on(again), expected, strict=True))


def test_making_and_using_a_gate_leaves_the_callers_random_state() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    gate = observed([(1.0, 1.0), (0.4, 0.9)], seed=7)
    gate.learn(tensor(0.1, -0.1))
    gate.weights()
    assert torch.equal(torch.get_rng_state(), state)


def test_its_seed_decides_how_it_learns() -> None:
    def learned(seed: int) -> Tensor:
        gate = observed([(1.0, 1.0), (0.4, 0.9)], seed=seed)
        for _ in range(5):
            gate.learn(tensor(0.5, -0.5))
        return gate.weights()

    assert torch.equal(learned(1), learned(1))
    assert not torch.equal(learned(1), learned(2))


def test_more_than_two_tasks() -> None:
    gate = observed([(1.0, 1.0, 1.0, 1.0), (0.2, 0.5, 0.7, 0.9)])
    weights = gate.weights().tolist()
    assert weights == sorted(weights, reverse=True)  # the lower the loss, the larger the weight
    for _ in range(150):
        gate.learn(tensor(0.5, 0.5, 0.5, -0.5))
    assert int(gate.weights().argmax()) == 3


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_above_zero(temperature: float) -> None:
    with pytest.raises(GemsError, match="temperature"):
        Gate(TASKS, temperature=temperature)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(GemsError, match="'learned' is unknown; hypergradient, prior, uniform are"):
        Gate(TASKS, "learned")


def test_tasks_with_the_same_features_can_be_told_apart() -> None:
    gate = Gate(TASKS, temperature=1.0)
    for _ in range(50):
        gate.learn(torch.tensor([-1.0, 1.0]))
        gate.observe(tensor(1.0, 1.0), tensor(1.0, 1.0), tensor(1.0, 1.0), everyone())
    assert float(gate.weights()[0]) > 0.6
