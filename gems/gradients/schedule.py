"""The schedule of refreshes: the bases of each weight are renewed every T steps, one group of weights at a time."""

from __future__ import annotations

from dataclasses import dataclass

from gems.model.errors import GemsError


@dataclass(frozen=True)
class RefreshSchedule:
    """The steps in which each weight is refreshed. The full gradients of only one group exist at a time.

    weights: number of weights.
    every: T, steps between two refreshes of a weight.
    stagger: number of groups; the groups start one after the other, one in each step.
    Raises `GemsError` if `every` or `stagger` is below 1.
    """

    weights: int
    every: int
    stagger: int

    def __post_init__(self) -> None:
        if self.every < 1 or self.stagger < 1:
            raise GemsError("refresh_every and stagger must be at least 1")

    def is_due(self, weight: int, step: int, started: bool) -> bool:
        """Whether a weight is refreshed in a step.

        weight: its number, from 0.
        step: number of the step, from 0.
        started: whether the weight has bases already.
        """
        groups = min(self.stagger, self.every)
        turn = weight * groups // self.weights
        if not started:
            return step >= turn
        if step < groups:  # not all groups have started
            return False
        return step % self.every == turn * self.every // groups
