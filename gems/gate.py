"""The gate: how much of each task's own update is used.

    α = softmax(o / τ),   o_t = f_φ(z_t) + b_t − (T · z_t[loss] − 1)

z_t holds task t's share of (loss relative to its first value, gradient norm, samples), smoothed over
steps; f_φ is a two-layer ReLU perceptron, the same for each task, whose last layer starts at zero, and b
a bias for each task, zero too, since tasks may differ where their features do not. The last term is the
prior of the paper (arXiv 2601.09496): the task with the higher loss gets the smaller weight. φ and b learn
by the one-step hypergradient (docs/gems.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gems.errors import GemsError

KINDS = ("hypergradient", "prior", "uniform")


class Gate:
    """Weights α [T] of the tasks, adding up to 1.

    kind: `hypergradient` learns φ and b, `prior` keeps them at their start, `uniform` is 1/T.
    temperature: τ; learning_rate: of gradient descent on both; smoothing: decay of the features' moving average.
    """

    def __init__(
        self,
        tasks: tuple[str, ...],
        kind: str = "hypergradient",
        *,
        temperature: float = 1.5,
        learning_rate: float = 1.0,
        smoothing: float = 0.9,
        hidden: int = 16,
        seed: int = 0,
    ) -> None:
        if kind not in KINDS:
            raise GemsError(f"gate {kind!r} is unknown; {', '.join(KINDS)} are")
        if not temperature > 0:
            raise GemsError(f"gate temperature {temperature} must be above 0")
        self.tasks = tasks
        self.kind = kind
        self._temperature = temperature
        self._smoothing = smoothing
        generator = torch.Generator().manual_seed(seed)
        first = nn.utils.skip_init(nn.Linear, 3, hidden)  # type: ignore[no-untyped-call]  # the caller's random state is left alone
        last = nn.utils.skip_init(nn.Linear, hidden, 1)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            first.weight.copy_(torch.randn(hidden, 3, generator=generator) * 3**-0.5)
            for parameter in (first.bias, last.weight, last.bias):
                parameter.zero_()
        self._perceptron = nn.Sequential(first, nn.ReLU(), last)
        self._bias = nn.Parameter(torch.zeros(len(tasks)))
        learned = [*self._perceptron.parameters(), self._bias]
        self._optimizer = torch.optim.SGD(
            learned, lr=learning_rate
        )  # Adam would undo the brake α_i (1 − α_i)
        even = 1.0 / max(1, len(tasks))
        self._features = torch.full((len(tasks), 3), even)
        self._initial = torch.full((len(tasks),), float("nan"))
        self._seen = 0

    def observe(self, losses: Tensor, norms: Tensor, samples: Tensor, present: Tensor) -> None:
        """Take in the figures of a step: float [T] each; a task that is not `present` (bool [T]) keeps its own.

        Shares of what is not positive in sum (no samples given, say) count as even.
        """
        losses, norms, samples = (figure.float() for figure in (losses, norms, samples))
        fresh = present & self._initial.isnan()
        self._initial = torch.where(fresh, losses, self._initial)
        if not bool(present.all()):
            return  # shares need every task
        relative = losses / self._initial.clamp(min=1e-12)
        figures = torch.stack([relative, norms, samples], dim=1)  # [T, 3]
        total = figures.sum(0)
        shares = torch.where(total > 0, figures / total.clamp(min=1e-30), 1.0 / len(self.tasks))
        decay = min(self._smoothing, self._seen / (self._seen + 1))  # a plain mean until there is a history
        self._features = decay * self._features + (1 - decay) * shares
        self._seen += 1

    def weights(self) -> Tensor:
        """α [T], without gradient."""
        with torch.no_grad():
            return torch.softmax(self._scores() / self._temperature, dim=0)

    @torch.enable_grad()
    def learn(self, sensitivity: Tensor) -> None:
        """One step of φ and b from h [T], h_i = ∂L/∂α_i of the next batch's loss, at the weights last used.

            ∂L/∂o_i = α_i (h_i − Σ_j α_j h_j) / τ

        For two tasks this is α_1 α_2 (h_1 − h_2) / τ. Call it before `observe`.
        """
        if self.kind != "hypergradient":
            return
        scores = self._scores()
        alpha = torch.softmax(scores.detach() / self._temperature, dim=0)
        gradient = alpha * (sensitivity - (alpha * sensitivity).sum()) / self._temperature
        self._optimizer.zero_grad()
        scores.backward(gradient)  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def _scores(self) -> Tensor:
        if self.kind == "uniform":
            return torch.zeros(len(self.tasks))
        prior = 1 - len(self.tasks) * self._features[:, 0]
        if self.kind == "prior":
            return prior
        scores: Tensor = self._perceptron(self._features).squeeze(1) + self._bias + prior
        return scores

    def state_dict(self) -> dict[str, Any]:
        return {
            "perceptron": self._perceptron.state_dict(),
            "bias": self._bias.detach(),
            "optimizer": self._optimizer.state_dict(),
            "features": self._features,
            "initial": self._initial,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._perceptron.load_state_dict(state["perceptron"])
        with torch.no_grad():
            self._bias.copy_(state["bias"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._features = state["features"].clone()
        self._initial = state["initial"].clone()
        self._seen = state["seen"]
