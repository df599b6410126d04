"""The tables of every system in docs/results are those of the ranks that lie beside them."""

from __future__ import annotations

import json
from collections import defaultdict

import numpy as np
import pytest
from support.paths import ROOT

from training.evaluation.case_ranks import CaseRanks
from training.evaluation.metrics import per_case
from training.reproduce.tables import METRICS, RANKINGS

RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize("data", ["movielens"])
@pytest.mark.parametrize("ranking", RANKINGS)
def test_the_figures_of_the_systems_are_those_of_their_ranks(data: str, ranking: str) -> None:
    tables = json.loads((RESULTS / f"systems-{data}.json").read_text("utf-8"))
    page = (RESULTS / "systems.md").read_text("utf-8")
    values = defaultdict(list)
    for path in (RESULTS / f"systems-{data}").glob(f"*-seed*/{RANKINGS[ranking]}"):
        measured = CaseRanks.load(path)
        for task, found in measured.tasks.items():
            values[task.value, measured.system].append(per_case(found.ranks))
    figures = {
        (task, name): row
        for task, table in tables["rankings"][ranking].items()
        for name, row in table["systems"].items()
    }
    assert set(values) == set(figures)
    for place, seeds in values.items():
        means = {metric: np.mean([seed[metric].mean() for seed in seeds]) for metric in METRICS}
        assert means == pytest.approx({metric: figures[place][metric] for metric in METRICS})
        assert f"| {place[1]} | {' | '.join(f'{means[metric]:.4f}' for metric in METRICS)} [" in page
