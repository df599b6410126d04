"""The engine's throughput, and a forecast of how long it will take for its requests in flight."""

from __future__ import annotations

_DECAY = 0.9  # weight of past rounds when a round is added


class Throughput:
    """Costs are positions that the engine computes; times are seconds on one clock.

    It is measured by rounds. A round begins when the engine had nothing to do, or at the end of the round before; it
    ends when everything is answered that was in flight at its first answer. Requests that are answered together make
    one round, and so do as many that come and go one by one. Old rounds fade out.
    """

    def __init__(self) -> None:
        self._cost = 0.0  # of past rounds
        self._seconds = 0.0  # of past rounds
        self._in_flight = 0  # cost
        self._began = 0.0  # time at which this round began
        self._due = 0  # cost that ends this round; 0 before its first answer
        self._answered = 0  # cost
        self._whole = True

    def seconds(self, cost: float) -> float:
        """Forecast the seconds for this cost; 0 before the end of the first round."""
        return cost * self._seconds / self._cost if self._cost else 0.0

    def ahead(self, now: float) -> float:
        """Forecast the seconds until all requests in flight are answered."""
        if not self._in_flight:
            return 0.0
        return max(0.0, self.seconds(self._in_flight + self._answered) - (now - self._began))

    def taken(self, cost: int, now: float) -> None:
        """Note that the engine took requests of this total cost."""
        if not self._in_flight:
            self._begin(now)
        self._in_flight += cost

    def answered(self, cost: int, now: float, whole: bool = True) -> None:
        """Note that the engine finished requests of this total cost.

        whole: whether it ranked all of them. If some were dropped, all of them would have taken longer, so that the
            round counts only if it was slow already.
        """
        self._due = self._due or self._in_flight
        self._in_flight -= cost
        self._answered += cost
        self._whole &= whole
        if self._answered < self._due:
            return
        seconds = now - self._began
        if self._whole or seconds > self.seconds(self._answered):
            self._cost = _DECAY * self._cost + self._answered
            self._seconds = _DECAY * self._seconds + seconds
        self._begin(now)

    def failed(self, cost: int, now: float) -> None:
        """Note that the engine failed on requests of this total cost: its speed on them means nothing."""
        self._in_flight -= cost
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._began, self._due, self._answered, self._whole = now, 0, 0, True
