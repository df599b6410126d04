"""The forecast of how long the engine will take, on a clock of the test's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.serving.throughput import Throughput


def served(throughput: Throughput, gaps: list[int], costs: list[int], together: int) -> None:
    """An engine that takes a second for each unit of cost, up to `together` requests at the same time, which it
    answers together; what arrives meanwhile is handed over as soon as there is room."""
    arrivals = [float(sum(gaps[: k + 1])) for k in range(len(gaps))]
    now = 0.0
    while arrivals:
        now = max(now, arrivals[0])
        batch = min(sum(moment <= now for moment in arrivals), together)
        cost = sum(costs[:batch])
        del arrivals[:batch], costs[:batch]
        throughput.taken(cost, now)
        now += cost
        throughput.answered(cost, now)


@given(st.data(), st.integers(1, 4))
def test_an_engine_of_constant_speed_is_known_exactly(data: st.DataObject, together: int) -> None:
    throughput = Throughput()
    count = data.draw(st.integers(1, 20))
    gaps = data.draw(st.lists(st.integers(0, 30), min_size=count, max_size=count))
    costs = data.draw(st.lists(st.integers(1, 20), min_size=count, max_size=count))
    served(throughput, gaps, costs, together)
    assert throughput.seconds(10) == pytest.approx(10)


@given(st.integers(1, 8))
def test_requests_that_overlap_count_once(together: int) -> None:
    """So many in hand all the time, each taking as many seconds; one comes for each that goes."""
    throughput = Throughput()
    for k in range(together):
        throughput.taken(5, float(k))
    for k in range(40):
        now = float(together + k)
        throughput.answered(5, now)
        throughput.taken(5, now)
    assert throughput.seconds(5) == pytest.approx(1, rel=0.3)
    assert throughput.ahead(float(together + 39)) == pytest.approx(together, rel=0.5)


def test_what_was_done_since_is_taken_off_the_forecast() -> None:
    throughput = Throughput()
    assert throughput.ahead(0.0) == throughput.seconds(7) == 0
    throughput.taken(10, 0.0)
    assert throughput.ahead(3.0) == 0  # nothing is known yet
    throughput.answered(10, 5.0)
    throughput.taken(20, 100.0)
    assert throughput.ahead(100.0) == 10
    assert throughput.ahead(104.0) == 6
    assert throughput.ahead(1000.0) == 0


def test_what_was_given_up_makes_the_engine_look_slower_or_nothing() -> None:
    throughput = Throughput()
    throughput.taken(10, 0.0)
    throughput.answered(10, 10.0)
    throughput.taken(10, 20.0)
    throughput.answered(10, 21.0, whole=False)
    assert throughput.seconds(10) == 10
    throughput.taken(10, 30.0)
    throughput.answered(10, 60.0, whole=False)
    assert throughput.seconds(10) > 15


def test_failures_tell_nothing() -> None:
    throughput = Throughput()
    throughput.taken(10, 0.0)
    throughput.answered(10, 10.0)
    throughput.taken(10, 20.0)
    throughput.failed(10, 1000.0)
    assert throughput.seconds(10) == 10
    assert throughput.ahead(1000.0) == 0
    throughput.taken(10, 2000.0)
    throughput.answered(10, 2010.0)
    assert throughput.seconds(10) == 10
