"""How fast the engine is, and how long it will take for what it has in hand."""

from __future__ import annotations

_KEPT = 0.9  # weight of the past when a round is added


class Pace:
    """Costs are positions that the engine computes; times are seconds on one clock.

    Measured by rounds: from when the engine had nothing to do, or from the end of the round before, until all that it
    had in hand at the round's first answer is answered. Requests that are answered together make one round, and so do
    as many that come and go one by one. Old rounds fade out.
    """

    def __init__(self) -> None:
        self._cost = 0.0  # of past rounds
        self._seconds = 0.0
        self._in_hand = 0
        self._began = 0.0  # this round
        self._due = 0  # cost that ends it; 0 before its first answer
        self._answered = 0
        self._whole = True

    def seconds(self, cost: float) -> float:
        """Forecast for so much; 0 before the first round."""
        return cost * self._seconds / self._cost if self._cost else 0.0

    def ahead(self, now: float) -> float:
        """Forecast of the seconds until all that is in hand is answered."""
        if not self._in_hand:
            return 0.0
        return max(0.0, self.seconds(self._in_hand + self._answered) - (now - self._began))

    def taken(self, cost: int, now: float) -> None:
        """The engine was given requests of this cost in all."""
        if not self._in_hand:
            self._begin(now)
        self._in_hand += cost

    def answered(self, cost: int, now: float, whole: bool = True) -> None:
        """The engine is done with requests of this cost in all.

        whole: False where some of them were given up. All of it would have taken longer, so that the round counts only
        if it was slow already.
        """
        self._due = self._due or self._in_hand
        self._in_hand -= cost
        self._answered += cost
        self._whole &= whole
        if self._answered < self._due:
            return
        seconds = now - self._began
        if self._whole or seconds > self.seconds(self._answered):
            self._cost = _KEPT * self._cost + self._answered
            self._seconds = _KEPT * self._seconds + seconds
        self._begin(now)

    def failed(self, cost: int, now: float) -> None:
        """The engine failed on requests of this cost in all: how fast it was means nothing."""
        self._in_hand -= cost
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._began, self._due, self._answered, self._whole = now, 0, 0, True
