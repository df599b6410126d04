"""The gate: it weights each task's own update.

    α = softmax(o / τ),   o_t = f_φ(z_t) + b_t − (T · z_t[loss] − 1)

z_t holds three figures of task t, smoothed over steps: its share of the losses (relative to their first values), of the
gradient norms and of the samples. f_φ is a two-layer ReLU perceptron, the same for all tasks; its last layer starts at
zero. b_t is a bias for each task, also zero at first: tasks may differ even if their features are equal. The last term
is the prior of the paper (arXiv 2601.09496): the task with the higher loss gets the smaller weight. φ and b are trained
with the one-step hypergradient (docs/gems.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gems.model.errors import GemsError

KINDS = ("hypergradient", "prior", "uniform")


class Gate:
    """Weights α [T] of the tasks; their sum is 1.

    kind: `hypergradient` trains φ and b, `prior` keeps them at their start, `uniform` is 1/T.
    temperature: τ.
    learning_rate: rate of the gradient descent on φ and b.
    smoothing: decay of the moving average of the features.
    hidden: units of the perceptron.
    Raises `GemsError` for an unknown kind or a temperature that is not above 0.
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
        # `skip_init` leaves the caller's random state alone
        first = nn.utils.skip_init(nn.Linear, 3, hidden)  # type: ignore[no-untyped-call]
        last = nn.utils.skip_init(nn.Linear, hidden, 1)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            first.weight.copy_(torch.randn(hidden, 3, generator=generator) * 3**-0.5)
            for parameter in (first.bias, last.weight, last.bias):
                parameter.zero_()
        self._perceptron = nn.Sequential(first, nn.ReLU(), last)
        self._bias = nn.Parameter(torch.zeros(len(tasks)))
        learned = [*self._perceptron.parameters(), self._bias]
        # not Adam: it would cancel the factor α_i (1 − α_i), which slows down changes near 0 and 1
        self._optimizer = torch.optim.SGD(learned, lr=learning_rate)
        even = 1.0 / max(1, len(tasks))
        self._features = torch.full((len(tasks), 3), even)
        self._initial = torch.full((len(tasks),), float("nan"))
        self._seen = 0

    def observe(self, losses: Tensor, norms: Tensor, samples: Tensor, present: Tensor) -> None:
        """Add the figures of a step to the features.

        losses, norms, samples: float [T]. If the sum of one of them is not above 0 (for example, no samples are
        given), all tasks get equal shares of it.
        present: bool [T], the tasks of the step. The features change only in steps with all tasks.
        """
        losses, norms, samples = (figure.float() for figure in (losses, norms, samples))
        fresh = present & self._initial.isnan()
        self._initial = torch.where(fresh, losses, self._initial)
        if not bool(present.all()):
            return  # shares need the figures of all tasks
        relative = losses / self._initial.clamp(min=1e-12)
        figures = torch.stack([relative, norms, samples], dim=1)  # [T, 3]
        total = figures.sum(0)
        shares = torch.where(total > 0, figures / total.clamp(min=1e-30), 1.0 / len(self.tasks))
        decay = min(self._smoothing, self._seen / (self._seen + 1))  # a plain mean in the first steps
        self._features = decay * self._features + (1 - decay) * shares
        self._seen += 1

    def weights(self) -> Tensor:
        """Return α [T], without gradient."""
        with torch.no_grad():
            return torch.softmax(self._scores() / self._temperature, dim=0)

    @torch.enable_grad()
    def learn(self, sensitivity: Tensor) -> None:
        """Train φ and b for one step. Call it before `observe`.

        sensitivity: h [T], h_i = ∂L/∂α_i: the derivative of the next batch's loss at the weights α that were used last.

            ∂L/∂o_i = α_i (h_i − Σ_j α_j h_j) / τ

        For two tasks and i = 1 this is α_1 α_2 (h_1 − h_2) / τ.
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
        """Return the parameters, their optimizer and the features."""
        return {
            "perceptron": self._perceptron.state_dict(),
            "bias": self._bias.detach(),
            "optimizer": self._optimizer.state_dict(),
            "features": self._features,
            "initial": self._initial,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state of `state_dict`."""
        self._perceptron.load_state_dict(state["perceptron"])
        with torch.no_grad():
            self._bias.copy_(state["bias"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._features = state["features"].clone()
        self._initial = state["initial"].clone()
        self._seen = state["seen"]
