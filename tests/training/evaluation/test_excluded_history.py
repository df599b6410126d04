"""The log decides whether items of the history are ranked, unless it is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from index.catalogue import Catalogue, Item
from index.sequence.events import Event
from training.baselines.run import run_baseline
from training.baselines.settings import NCFSettings
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.schema import DataInfo
from training.data.splits import Case
from training.evaluation.candidates import excludes_history

ITEMS = 12
CASE = Case("u", (Event(0), Event(1)), 2, None)


def test_one_item_that_is_taken_again_decides() -> None:
    again = replace(CASE, target=1)
    assert excludes_history(None, [CASE, CASE])
    assert not excludes_history(None, [CASE, again])
    for asked in (True, False):
        assert excludes_history(asked, [CASE]) == excludes_history(asked, [again]) == asked


@pytest.mark.parametrize("again", [False, True])
def test_a_baseline_records_what_the_log_decided(again: bool, tmp_path: Path) -> None:
    people = []
    for user in range(8):
        rows = [(user + k) % ITEMS for k in range(4)]
        if again and user == 0:
            rows[2] = rows[0]  # the validation item
        events = tuple(Event(row) for row in rows)
        people.append(UserHistory(f"u{user}", events, (None,) * 4, (0, 1, 2, 3)))
    catalogue = Catalogue([Item(f"i{row}", f"item {row}") for row in range(ITEMS)])
    DataSet(DataInfo("log", "made here"), catalogue, people).save(tmp_path / "data")
    settings = NCFSettings(epochs=1, hidden=4, threads=1)
    for name in ("run", "run"):  # the second call finds the run as it was recorded
        result = run_baseline(
            tmp_path / "data", tmp_path / name, settings, resume=True, console=Console(quiet=True)
        )
        assert result["protocol"]["exclude_history"] is not again
