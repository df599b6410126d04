"""Metrics compared with ir-measures, floors with their definition, intervals with their coverage."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import RR, Qrel, ScoredDoc, Success, nDCG

from index.catalogue import Catalogue, Item
from index.sequence.events import Event, Task
from server.engine.contract import Ranking
from training.data.splits import Case
from training.evaluation.bootstrap import RESAMPLES, mean_interval, mean_intervals
from training.evaluation.candidates import Candidates
from training.evaluation.floors import floor_ranks, floor_scores, popularity
from training.evaluation.matching import query_match_share
from training.evaluation.metrics import CUTOFFS, NAMES, per_case
from training.evaluation.ranking import target_ranks


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_metrics_equal_ir_measures(ranks: list[int]) -> None:
    qrels = [Qrel(str(case), "target", 1) for case in range(len(ranks))]
    run = [
        ScoredDoc(str(case), "target" if r == rank else f"other-{r}", float(-r))
        for case, rank in enumerate(ranks)
        for r in range(1, 61)
    ]
    values = per_case(np.array(ranks))
    for k in CUTOFFS:
        for ours, theirs in ((f"hit@{k}", Success @ k), (f"ndcg@{k}", nDCG @ k), (f"mrr@{k}", RR @ k)):
            for measured in ir_measures.iter_calc([theirs], qrels, run):
                assert values[ours][int(measured.query_id)] == pytest.approx(measured.value, abs=1e-9)


def test_metrics_of_perfect_missing_and_truncated_rankings() -> None:
    values = per_case(np.array([1, 0, 11]))
    assert [values[name][0] for name in NAMES] == [1.0] * len(NAMES)
    assert [values[name][1] for name in NAMES] == [0.0] * len(NAMES)
    assert (values["hit@10"][2], values["hit@50"][2]) == (0, 1)


def test_ndcg_never_exceeds_hit() -> None:
    values = per_case(np.arange(60))
    for k in CUTOFFS:
        assert (values[f"mrr@{k}"] <= values[f"ndcg@{k}"]).all()
        assert (values[f"ndcg@{k}"] <= values[f"hit@{k}"]).all()


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        low, high = mean_interval((rng.random(200) < 0.3).astype(float))
        covered += low <= 0.3 <= high
    assert 85 <= covered <= 100


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    rng = np.random.default_rng(1)
    a = rng.random(500)
    b = a - 0.05 + 0.01 * rng.random(500)
    paired = np.subtract(*mean_interval(a - b)[::-1])
    alone = np.subtract(*mean_interval(a)[::-1])
    assert paired < alone / 5


CATALOGUE = Catalogue(
    [
        Item("a", "Red shoes", categories=("Shoes",)),
        Item("b", "Red hat", categories=("Hats",)),
        Item("c", "Blue hat", categories=("Hats",)),
        Item("d", "Green scarf"),
    ]
)
TRAIN = [[Event(2), Event(3)], [Event(3), Event(2), Event(2)], [Event(1)]]


def case(target: int, query: str | None = None, history: tuple[Event, ...] = ()) -> Case:
    return Case("u", history, target, query)


def test_popularity_counts_training_only_and_breaks_ties_by_catalogue_order() -> None:
    assert popularity(TRAIN, 4).tolist() == [0, 1, 3, 2]
    floor = floor_scores(Task.RECOMMENDATION, CATALOGUE, TRAIN)["popularity"]
    assert floor_ranks(floor, [case(k) for k in range(4)]).tolist() == [4, 3, 1, 2]
    ties = floor_scores(Task.RECOMMENDATION, CATALOGUE, [])["popularity"]
    assert floor_ranks(ties, [case(k) for k in range(4)]).tolist() == [1, 2, 3, 4]


def test_query_floors_put_matching_items_first() -> None:
    floors = floor_scores(Task.SEARCH, CATALOGUE, TRAIN)
    assert floor_ranks(floors["popularity_in_query"], [case(2, "hats"), case(1, "hats")]).tolist() == [1, 2]
    assert floor_ranks(floors["popularity_in_query"], [case(0, "red shoes")]).tolist() == [1]
    assert floor_ranks(floors["bm25"], [case(3, "green scarf"), case(0, "red shoes")]).tolist() == [1, 1]


def test_what_people_chose_for_the_same_query_comes_first_then_popularity_in_the_query() -> None:
    def searched(query: str, item: int) -> Event:
        return Event(item, Task.SEARCH, query)

    train = [
        [searched("Hats!", 3), searched("hats", 3), Event(1)],  # one person twice
        [searched("hats", 0), Event(1)],
        [searched("HATS", 0), searched("red hats", 3)],
    ]
    floor = floor_scores(Task.SEARCH, CATALOGUE, train)["popularity_in_same_query"]
    ranks = floor_ranks(floor, [case(row, "hats") for row in (0, 3, 1, 2)])
    assert ranks.tolist() == [1, 2, 3, 4]  # two people, one person, then the hats by popularity
    unknown = [case(row, "hat") for row in range(4)]
    behind = floor_scores(Task.SEARCH, CATALOGUE, train)["popularity_in_query"]
    assert floor_ranks(floor, unknown).tolist() == floor_ranks(behind, unknown).tolist()


def test_floors_exclude_the_history_and_with_it_a_target_that_comes_back() -> None:
    floor = floor_scores(Task.RECOMMENDATION, CATALOGUE, TRAIN)["popularity"]
    history = (Event(2), Event(3))
    assert floor_ranks(floor, [case(1, history=history)], candidates=Candidates(True)).tolist() == [1]
    assert floor_ranks(floor, [case(2, history=history)], candidates=Candidates(True)).tolist() == [0]
    assert floor_ranks(floor, [case(3)], limit=1).tolist() == [0]


def test_ranks_and_matches_of_rankings() -> None:
    rankings = [Ranking([2, 1], [0.0, -1.0]), Ranking([0], [0.0])]
    cases = [case(1, "blue"), case(3, "hats")]
    assert target_ranks(rankings, cases).tolist() == [2, 0]
    assert query_match_share(CATALOGUE, cases, rankings) == pytest.approx(1 / 3)


def test_intervals_of_columns_are_those_of_each_alone() -> None:
    values = np.random.default_rng(2).random((70, 3))
    together = mean_intervals(values, seed=4)
    rng = np.random.default_rng(4)
    means = np.array([values[rng.integers(0, 70, 70)].mean(0) for _ in range(RESAMPLES)])
    assert np.allclose(np.array(together).T, np.quantile(means, [0.025, 0.975], axis=0))
    for column, interval in zip(values.T, together, strict=True):
        assert interval == pytest.approx(mean_interval(column, seed=4))
