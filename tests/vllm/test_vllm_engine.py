"""The vLLM engine, compared with the torch engine, both in fp32. Run by `make test-vllm`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from support.bundles import make_bundle
from support.engines import assert_same_ranking

from index.bundle.bundle import Bundle
from index.trie.allowed import Allowed, SlotSet
from server.engine.contract import EngineError, Outcome, Ranking, RankRequest
from server.engine.options import EngineOptions
from server.engine.torch_backend.engine import TorchEngine
from server.engine.vllm_backend.engine import VllmEngine

pytest.importorskip(
    "vllm.version", reason="vLLM is not installed here; 'make test-vllm' has an environment for it"
)
pytestmark = pytest.mark.vllm

# Heads of 32 dimensions, the smallest that vLLM supports on a CPU.
make = partial(make_bundle, hidden=128)


@dataclass
class Pair:
    """Both engines on one bundle of `items` items."""

    torch: TorchEngine
    vllm: VllmEngine
    items: int


@pytest.fixture(
    scope="module",
    params=[("level", None), ("vocabulary", None), ("level", 6)],
    ids=["level", "vocabulary", "spelled"],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    normalisation, spelling = request.param
    path = make(tmp_path_factory.mktemp("bundle") / "bundle", normalisation=normalisation, spelling=spelling)
    bundle = Bundle.open(path)
    engine = VllmEngine.open(bundle, EngineOptions(engine="vllm", cache_bytes=1 << 28))
    yield Pair(TorchEngine.open(bundle), engine, len(bundle.index.catalogue))
    engine.close()


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(1, 300, length).tolist()


def test_rankings_are_those_of_the_torch_engine_alone_and_together(pair: Pair) -> None:
    requests = [
        RankRequest(prompt(length), limit, width)
        for length, limit, width in ((1, 10, 1), (7, 5, 10), (32, 10, 20), (95, 20, 20), (240, 1, 50))
    ]
    for ranking, expected in zip(pair.vllm.rank(requests), pair.torch.rank(requests), strict=True):
        assert_same_ranking(ranking, expected)
    for request in requests:
        assert_same_ranking(pair.vllm.rank([request])[0], pair.torch.rank([request])[0])


def test_a_beam_as_wide_as_the_catalogue_ranks_every_item(pair: Pair) -> None:
    request = RankRequest(prompt(50), pair.items, pair.items)
    ranking = pair.vllm.rank([request])[0]
    assert sorted(ranking.items) == list(range(pair.items))
    assert_same_ranking(ranking, pair.torch.rank([request])[0])


def test_filters_and_exclusions_act_before_the_beam(pair: Pair) -> None:
    trie = pair.torch.everything.trie
    rng = np.random.default_rng(0)
    requests, rows = [], []
    for kept, excluded, width in ((1, 0, 5), (0, 0, 5), (20, 10, 20), (60, 30, 10), (60, 59, 1)):
        chosen = rng.permutation(pair.items)[:kept]
        left = rng.permutation(pair.items)[:excluded]
        slots = SlotSet.of_members(trie.slot_of_item[chosen], trie.items)
        requests.append(RankRequest(prompt(40), width, width, Allowed.of(trie, slots, left.tolist())))
        rows.append(set(chosen.tolist()) - set(left.tolist()))
    for request, allowed, ranking, expected in zip(
        requests, rows, pair.vllm.rank(requests), pair.torch.rank(requests), strict=True
    ):
        assert_same_ranking(ranking, expected)
        assert set(ranking.items) <= allowed
        assert len(ranking.items) == min(request.limit, len(allowed))


def test_pools_and_levels_mean_what_they_mean_to_the_torch_engine(pair: Pair) -> None:
    """The pool's question about a prompt is not mistaken for one whose prompt was known."""
    trie = pair.torch.everything.trie
    rng = np.random.default_rng(0)
    half = Allowed.of(trie, SlotSet.of_members(np.arange(0, pair.items, 2), trie.items), [1, 2, 3])
    requests = [
        RankRequest(prompt(70 + k, 5), width, width, half, pool=pool, levels=levels)
        for k, (width, pool, levels) in enumerate(
            [
                (5, rng.permutation(pair.items)[:20].tolist(), None),
                (1, list(range(pair.items)), trie.levels - 1),
                (pair.items, [7], 1),
            ]
        )
    ]
    for ranking, expected in zip(pair.vllm.rank(requests), pair.torch.rank(requests), strict=True):
        assert_same_ranking(ranking, expected)
    assert pair.vllm.rank([replace(requests[0], prompt=prompt(80, 6))])[0].cached_tokens == 0
    assert not pair.vllm._llm.has_unfinished_requests()


def test_what_is_known_of_a_prompt_is_not_computed_again_and_changes_nothing(pair: Pair) -> None:
    history = prompt(100, seed=1)
    first, again, longer = (
        pair.vllm.rank([RankRequest(ids, 10, 10)])[0] for ids in (history, history, [*history, 5, 9])
    )
    assert first.cached_tokens == 0
    assert again.cached_tokens == longer.cached_tokens == 96  # whole blocks of 32
    assert_same_ranking(again, first)
    assert_same_ranking(longer, pair.torch.rank([RankRequest([*history, 5, 9], 10, 10)])[0])


def test_a_request_whose_time_is_up_is_given_up_and_disturbs_nobody(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = RankRequest(prompt(30), 5, 10)
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("server.engine.contract.time", clock)
    now = 1.0
    late, on_time = pair.vllm.rank([RankRequest(prompt(95), 5, 10, deadline=0.5), request])
    assert late.expired
    assert late.items == []
    assert_same_ranking(on_time, pair.torch.rank([request])[0])
    steps = iter(range(100))  # the clock advances with every check of the deadline
    clock.monotonic = lambda: next(steps)
    assert pair.vllm.rank([RankRequest(prompt(95), 5, 10, deadline=1.5)])[0].expired  # between two levels
    assert not pair.vllm._llm.has_unfinished_requests()
    monkeypatch.undo()
    assert_same_ranking(pair.vllm.rank([request])[0], pair.torch.rank([request])[0])


def test_a_request_for_which_nobody_waits_is_given_up(pair: Pair) -> None:
    asked = count()
    left = RankRequest(prompt(95), 5, 10, cancelled=lambda: next(asked) > 0)  # between two levels
    ranking, other = pair.vllm.rank([left, RankRequest(prompt(30), 5, 10)])
    assert ranking.expired
    assert (ranking.items, len(other.items)) == ([], 5)
    assert not pair.vllm._llm.has_unfinished_requests()


def test_requests_join_others_between_two_steps(pair: Pair) -> None:
    """One more request arrives before every step: three valid ones and one that cannot begin."""
    requests = [RankRequest(prompt(length), 5, 10) for length in (40, 60, 254, 80)]
    coming = iter([{1: requests[1]}, {2: requests[2]}, {3: requests[3]}])
    told: list[Mapping[int, Outcome]] = []
    pair.vllm.serve({0: requests[0]}, lambda: next(coming, {}), told.append)
    assert [number for outcomes in told for number in outcomes] == [2, 0, 1, 3]
    outcomes = {number: outcome for each in told for number, outcome in each.items()}
    assert isinstance(outcomes[2], EngineError)
    for number in (0, 1, 3):
        ranking = outcomes[number]
        assert isinstance(ranking, Ranking)
        assert_same_ranking(ranking, pair.torch.rank([requests[number]])[0])
    assert not pair.vllm._llm.has_unfinished_requests()


def test_prompts_that_do_not_fit_are_refused(pair: Pair) -> None:
    with pytest.raises(EngineError, match="context"):
        pair.vllm.rank([RankRequest(prompt(254), 1, 1)])
    assert not pair.vllm._llm.has_unfinished_requests()
