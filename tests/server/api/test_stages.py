"""The stages have one order, in answers, metrics and traces."""

from __future__ import annotations

from server.api.responses import Timings
from server.api.stages import STAGES


def test_answers_list_every_stage_in_the_order_of_time() -> None:
    assert tuple(Timings.model_fields) == (*STAGES, "total")
