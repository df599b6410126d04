"""When each weight's bases are refreshed: every T steps, in groups that take turns."""

from __future__ import annotations

from dataclasses import dataclass

from gems.errors import GemsError


@dataclass(frozen=True)
class RefreshSchedule:
    """weights: how many there are. every: T, steps between refreshes of a weight. stagger: groups, and the
    steps until all have started. Only one group's full gradients exist at a time."""

    weights: int
    every: int
    stagger: int

    def __post_init__(self) -> None:
        if self.every < 1 or self.stagger < 1:
            raise GemsError("refresh_every and stagger must be at least 1")

    def is_due(self, weight: int, step: int, started: bool) -> bool:
        """Whether a weight, by number, is refreshed in a step. started: it has bases already."""
        groups = min(self.stagger, self.every)
        turn = weight * groups // self.weights
        if not started:
            return step >= turn
        if step < groups:  # some have yet to start
            return False
        return step % self.every == turn * self.every // groups
