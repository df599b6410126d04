"""Validation ranks as a server does: without the history, unless people take the same things again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.bundles import make_bundle

from index.bundle.bundle import Bundle
from index.sequence.events import Event, Task
from index.sequence.language_model import load_language_model
from server.engine.torch_backend.engine import TorchEngine
from training.config import TrainConfig
from training.data.splits import Case, takes_again
from training.evaluation.candidates import Candidates
from training.evaluation.metrics import per_case
from training.evaluation.ranking import rank_cases, target_ranks
from training.loop.validation import Validator

FEW = TrainConfig.load(None, {"validation.stop_on": "ndcg@10"})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(make_bundle(tmp_path / "bundle"))


def figures(bundle: Bundle, cases: list[Case]) -> tuple[dict[str, float], dict[bool, float]]:
    """Return what the validator finds, and NDCG@10 of recommendations with the history left out and ranked."""
    engine = TorchEngine.open(bundle)
    model = load_language_model(bundle.path, local=True)
    found = Validator(model, bundle.encoder, engine, cases, FEW)()
    expected = {}
    for excluded in (True, False):
        ranked = rank_cases(
            engine, bundle.encoder, cases, Task.RECOMMENDATION,
            beam_width=20, limit=10, candidates=Candidates(excluded),
        )  # fmt: skip
        expected[excluded] = float(per_case(target_ranks(ranked, cases))["ndcg@10"].mean())
    return found, expected


def test_items_of_the_history_are_ranked_only_where_somebody_takes_one_again(bundle: Bundle) -> None:
    items = len(bundle.index.catalogue)
    half = tuple(Event(row) for row in range(items // 2))
    cases = [Case(f"u{row}", half, row, None) for row in range(items // 2, items)]
    found, expected = figures(bundle, cases)
    assert not takes_again(cases)
    assert found["recommendation.ndcg@10"] == expected[True] != expected[False]
    again = [*cases, replace(cases[0], target=0)]
    found, expected = figures(bundle, again)
    assert takes_again(again)
    assert found["recommendation.ndcg@10"] == expected[False] != expected[True]
