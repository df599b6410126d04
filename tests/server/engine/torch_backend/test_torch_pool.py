"""Pools and identifiers cut short: scores compared with plain forward passes, and what must not depend on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.bundles import make_catalogue, make_model, make_spelled, make_tokenizer
from support.engines import assert_same_ranking
from support.references import identifier_scores
from support.t5 import KINDS, make_t5
from transformers import PreTrainedModel

from index.identifiers.identifiers import Identifiers
from index.identifiers.schemes.atomic import atomic_identifiers
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.contract import EngineError, Ranking, RankRequest
from server.engine.options import EngineOptions
from server.engine.torch_backend import search
from server.engine.torch_backend.engine import TorchEngine
from server.engine.torch_backend.forward_input import ForwardInput

LENGTHS = (1, 7, 30, 95)
BACKBONES = ("llama", "gpt-neox", *KINDS)


@dataclass
class World:
    """A random model and a catalogue."""

    model: PreTrainedModel
    codes: np.ndarray
    vocabulary: IdentifierVocabulary

    @property
    def items(self) -> int:
        return len(self.codes)

    def engine(self, normalisation: str = "level", **options: int) -> TorchEngine:
        precision = None if self.model.config.is_encoder_decoder else "float32"
        return TorchEngine(
            self.model,
            Trie.build(self.codes),
            self.vocabulary,
            normalisation=normalisation,
            options=EngineOptions(precision=precision, **options),
        )

    def scores(self, ids: Sequence[int], levels: int | None, normalisation: str = "level") -> np.ndarray:
        """Return log p(first `levels` codes | prompt) of every item, by one plain forward pass each."""
        tokens = torch.from_numpy(self.vocabulary.tokens(self.codes))
        with torch.inference_mode():
            if self.model.config.is_encoder_decoder:
                encoded = self.model.encoder(torch.tensor([list(ids)])).last_hidden_state
                start = torch.zeros(len(tokens), 1, dtype=torch.long)
                logits = self.model(
                    encoder_outputs=(encoded.expand(len(tokens), -1, -1),),
                    decoder_input_ids=torch.cat([start, tokens[:, :-1]], dim=1),
                ).logits
            else:
                full = torch.cat([torch.tensor([list(ids)]).expand(len(tokens), -1), tokens], dim=1)
                logits = self.model(full).logits[:, len(ids) - 1 : -1]
        return identifier_scores(logits.double(), self.codes, self.vocabulary, normalisation, levels)


def make(backbone: str, size: int) -> PreTrainedModel:
    return make_t5(size, backbone) if backbone in KINDS else make_model(size, backbone, positions=128)


@cache
def world(scheme: str = "semantic", backbone: str = "llama", items: int = 60, levels: int = 3) -> World:
    """A catalogue of a scheme; semantic identifiers share prefixes unevenly, and items share identifiers."""
    rng = np.random.default_rng(levels)
    if scheme == "atomic":
        named = atomic_identifiers(items)
    elif scheme == "spelled":
        catalogue = make_catalogue(items)
        tokenizer = make_tokenizer(catalogue.texts())
        named = make_spelled([item.title for item in catalogue], tokenizer, 6)
        vocabulary = IdentifierVocabulary.spelling(len(tokenizer), 6)
        assert len(set(vocabulary.lengths(named.codes).tolist())) > 1  # some end early
        return World(make(backbone, vocabulary.size), named.codes, vocabulary)
    else:
        codes = rng.integers(0, 8, (items, levels)) ** 2 // 8
        named = Identifiers("semantic", codes.astype(np.int32), tuple(int(k) for k in codes.max(0) + 1))
    vocabulary = IdentifierVocabulary(40, named.codebook_sizes)
    return World(make(backbone, vocabulary.size), named.codes, vocabulary)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(1, 40, length).tolist()


def draw_allowed(data: st.DataObject, trie: Trie) -> Allowed:
    some = st.sets(st.integers(0, trie.items - 1))
    chosen = data.draw(st.none() | some)
    slots = None if chosen is None else SlotSet.of_members(trie.slot_of_item[sorted(chosen)], trie.items)
    return Allowed.of(trie, slots, sorted(data.draw(some)))


def draw_request(data: st.DataObject, w: World, engine: TorchEngine) -> RankRequest:
    """Draw a request with a filter, a pool and levels."""
    width = data.draw(st.integers(1, 60))
    return RankRequest(
        prompt(data.draw(st.sampled_from(LENGTHS)), data.draw(st.integers(0, 3))),
        data.draw(st.integers(1, width)),
        width,
        draw_allowed(data, engine.everything.trie),
        pool=data.draw(st.lists(st.integers(0, w.items - 1), unique=True)),
        levels=data.draw(st.none() | st.integers(1, w.vocabulary.levels)),
    )


def passes_of(engine: TorchEngine, requests: Sequence[RankRequest]) -> tuple[list[Ranking], list[int]]:
    """Return the answers, and the number of rows of each forward pass."""
    rows: list[int] = []
    forward = engine._backbone.forward

    def counted(feeds: Sequence[ForwardInput]) -> torch.Tensor:
        rows.append(sum(len(feed.ids) for feed in feeds))
        return forward(feeds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._backbone, "forward", counted)
        return engine.rank(requests), rows


def assert_same_beam(ranking: Ranking, expected: Ranking) -> None:
    """Assert the same items and scores, whatever the pools."""
    assert_same_ranking(replace(ranking, pool_scores=[]), replace(expected, pool_scores=[]))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("scheme", ["atomic", "semantic", "spelled"])
@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
def test_pool_scores_are_those_of_plain_forward_passes(
    scheme: str, backbone: str, normalisation: str
) -> None:
    """The beam is as narrow as can be, so that it holds next to nothing of the pool; the filter holds half of it."""
    w = world(scheme, backbone)
    engine = w.engine(normalisation)
    trie = engine.everything.trie
    half = SlotSet.of_members(trie.slot_of_item[::2], trie.items)
    rng = np.random.default_rng(0)
    for levels in (None, *range(1, w.vocabulary.levels + 1)):
        pools = [rng.permutation(w.items)[:count].tolist() for count in (1, 20, w.items)]
        requests = [
            RankRequest(prompt(length), 1, 1, Allowed.of(trie, half, pool[:3]), pool=pool, levels=levels)
            for length, pool in zip((7, 30, 95), pools, strict=True)
        ]
        for request, together in zip(requests, engine.rank(requests), strict=True):
            expected = w.scores(request.prompt, levels, normalisation)[list(request.pool)]
            for ranking in (together, engine.rank([request])[0]):
                assert len(ranking.items) == 1
                assert np.allclose(ranking.pool_scores, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backbone", ["llama", "v1.0"])
@pytest.mark.parametrize("scheme", ["atomic", "semantic", "spelled"])
def test_a_beam_that_ends_early_ranks_as_brute_force_over_prefixes_does(scheme: str, backbone: str) -> None:
    """Items below one prefix share its score, and come in the order of slots."""
    w = world(scheme, backbone)
    engine = w.engine()
    trie = engine.everything.trie
    gone = [3, 4, 5]
    for levels in range(1, w.vocabulary.levels + 1):
        for limit in (1, 5, w.items):
            request = RankRequest(
                prompt(30),
                limit,
                w.items,
                Allowed.of(trie, excluded=gone),
                levels=levels,
                pool=range(w.items),
            )
            ranking = engine.rank([request])[0]
            scores = w.scores(request.prompt, levels)
            best = sorted(set(range(w.items)) - set(gone), key=lambda row: -scores[row])[:limit]
            assert len(ranking.items) == len(set(ranking.items)) == len(best)
            assert np.allclose(ranking.scores, scores[best], rtol=0, atol=1e-3)
            assert np.allclose(ranking.scores, scores[ranking.items], rtol=0, atol=1e-3)
            assert ranking.scores == [ranking.pool_scores[row] for row in ranking.items]  # to the last bit
            slots = trie.slot_of_item[ranking.items]
            prefix = w.codes[ranking.items, :levels]
            together = (prefix[1:] == prefix[:-1]).all(axis=1)
            assert (np.diff(slots)[together] > 0).all()
            assert (np.diff(ranking.scores)[together] == 0).all()


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_pool_of_any_catalogue_is_scored_as_brute_force_does(data: st.DataObject) -> None:
    """Catalogues have one item or more, levels with one code, and items that share an identifier."""
    shape = data.draw(st.tuples(st.integers(1, 25), st.integers(1, 4)))
    codes = data.draw(arrays(np.int32, shape, elements=st.integers(0, 4)))
    vocabulary = IdentifierVocabulary(40, tuple(int(k) for k in codes.max(0) + 1))
    w = World(make_model(vocabulary.size, positions=128), codes, vocabulary)
    engine = w.engine()
    requests = [draw_request(data, w, engine) for _ in range(data.draw(st.integers(1, 3)))]
    for request, ranking in zip(requests, engine.rank(requests), strict=True):
        expected = w.scores(request.prompt, request.levels)
        assert np.allclose(ranking.pool_scores, expected[list(request.pool)], rtol=0, atol=1e-3)
        assert np.allclose(ranking.scores, expected[ranking.items], rtol=0, atol=1e-3)
        assert request.allowed is not None
        assert len(ranking.items) == min(request.limit, request.allowed.count)
        assert request.allowed.holds(engine.everything.trie.slot_of_item[ranking.items].astype(int)).all()


@pytest.mark.parametrize("scheme", ["semantic", "spelled"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_pool_changes_nothing_of_the_beam_and_takes_no_pass_of_its_own(
    scheme: str, data: st.DataObject
) -> None:
    w = world(scheme, items=150, levels=4) if scheme == "semantic" else world(scheme)
    engine = w.engine(data.draw(st.sampled_from(["level", "vocabulary"])))
    request = draw_request(data, w, engine)
    trie = engine.everything.trie
    spare = data.draw(st.sampled_from([0, 8, 24, 100]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SPARE_ROWS", spare)
        patch.setattr(search, "FULL_PASS_ROWS", data.draw(st.sampled_from([0, 10, 512])))
        (with_pool,), rows = passes_of(engine, [request])
        (without,), rows_without = passes_of(engine, [replace(request, pool=())])
        again = engine.rank([replace(request, pool=request.pool[::-1])])[0]
    assert_same_beam(with_pool, without)
    assert without.pool_scores == []
    assert len(rows) <= len(rows_without)
    levels = request.written(w.vocabulary.levels)
    slots = trie.slot_of_item[list(request.pool)].astype(int)
    prefixes = sum(len(set(trie.node_at(depth, slots).tolist())) for depth in range(1, levels))
    assert sum(rows) <= sum(rows_without) + prefixes + spare * levels  # look-ahead may begin elsewhere
    assert np.allclose(again.pool_scores[::-1], with_pool.pool_scores, rtol=0, atol=1e-4)
    of_pool = dict(zip(request.pool, with_pool.pool_scores, strict=True))
    for item, score in zip(with_pool.items, with_pool.scores, strict=True):
        assert of_pool.get(item, score) == score  # one computation, one number


@pytest.mark.parametrize("backbone", ["llama", "v1.1"])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_scores_do_not_depend_on_neighbours(backbone: str, data: st.DataObject) -> None:
    w = world("semantic", backbone, items=150, levels=4)
    engine = w.engine()
    requests = [draw_request(data, w, engine) for _ in range(data.draw(st.integers(2, 5)))]
    for request, ranking in zip(requests, engine.rank(requests), strict=True):
        assert_same_ranking(ranking, engine.rank([request])[0])


def test_what_the_pool_has_computed_is_not_computed_again_and_does_not_stop_the_look_ahead() -> None:
    """Each of eight first codes leads to 40 second codes, each of these to two items with two codes of their own."""
    rng = np.random.default_rng(0)
    codes = np.column_stack([np.repeat(np.arange(8), 80), np.tile(np.repeat(rng.permutation(64)[:40], 2), 8)])
    codes = np.column_stack([codes, np.tile([3, 9], 320), rng.integers(0, 64, 640)])
    vocabulary = IdentifierVocabulary(40, (8, 64, 64, 64))
    engine = TorchEngine(make_model(vocabulary.size, positions=128), Trie.build(codes), vocabulary)
    request = RankRequest(prompt(30), 20, 20)
    (alone,), rows = passes_of(engine, [request])
    assert rows == [30 + 8, 20 + 40]  # the first codes with the prompt; then two codes of 20 hypotheses
    second = codes[:, :2]
    distinct: list[int] = []  # items of the answer that share no prefix of two codes
    for item in alone.items:
        if not (second[distinct] == second[item]).all(axis=1).any():
            distinct.append(item)
    (ranking,), rows = passes_of(engine, [replace(request, pool=distinct[:5])])
    assert rows == [30 + 8 + 5 + 5, 15 + 35]
    assert_same_beam(ranking, alone)


def confident(sharpness: float) -> TorchEngine:
    """An engine over 1,750 dense items. sharpness: factor of its output rows."""
    codes = np.unique(np.random.default_rng(0).integers(0, 20, (2000, 3)), axis=0)
    vocabulary = IdentifierVocabulary(40, (20, 20, 20))
    model = make_model(vocabulary.size, positions=128)
    with torch.no_grad():
        model.get_output_embeddings().weight[vocabulary.first_added :] *= sharpness
    return TorchEngine(model, Trie.build(codes), vocabulary)


def test_early_drop_holds_with_a_pool() -> None:
    """A confident model spares hypotheses of the last pass, whatever of them the pool has computed before."""
    engine = confident(3)
    rng = np.random.default_rng(1)
    spared = 0
    for seed in range(10):
        whole = engine.rank([RankRequest(prompt(30, seed), 50, 50)])[0]
        near = whole.items[: int(rng.integers(0, 50))]
        far = [row for row in rng.permutation(1500)[:30].tolist() if row not in near]
        for limit in (1, 3, 10, 25):
            request = RankRequest(prompt(30, seed), limit, 50, pool=[*near, *far])
            (short,), rows = passes_of(engine, [request])
            (without,), rows_without = passes_of(engine, [replace(request, pool=())])
            assert len(rows) <= len(rows_without)
            spared += len(rows) < len(rows_without)
            assert_same_beam(short, without)
            assert np.allclose(short.pool_scores[: len(near)], whole.scores[: len(near)], rtol=0, atol=1e-4)
    assert spared > 0


def test_where_the_pool_holds_the_first_part_of_the_last_pass_the_second_follows_at_once() -> None:
    engine = confident(1)
    trie = engine.everything.trie
    undecided = 0
    for seed in range(20):
        every = engine.rank([RankRequest(prompt(30, seed), trie.items, 50, levels=2)])[0]
        slots = trie.slot_of_item[every.items].astype(int)
        first = np.unique(trie.node_at(2, slots), return_index=True)[1]
        beam = sorted(first.tolist())[:50]  # positions in `every` of the first item below each hypothesis
        for limit in (1, 3):
            request = RankRequest(prompt(30, seed), limit, 50)
            (without,), rows_without = passes_of(engine, [request])
            least = every.scores[beam[limit - 1]] - search.SLACK
            near = [every.items[k] for k in beam if every.scores[k] >= least]
            (with_pool,), rows = passes_of(engine, [replace(request, pool=near)])
            assert_same_beam(with_pool, without)
            if len(rows_without) == 3:  # the prompt, the first part, the second
                undecided += 1
                assert rows == [30 + 20 + len(near), 50 - len(near)]
    assert undecided > 0


def test_a_pool_that_the_beam_cannot_reach_is_scored_all_the_same() -> None:
    """Nothing is allowed: there is no beam at all."""
    w = world()
    engine = w.engine()
    trie = engine.everything.trie
    nothing = Allowed.of(trie, SlotSet.of_members(np.zeros(0, np.int64), trie.items))
    ranking = engine.rank([RankRequest(prompt(30), 5, 5, nothing, pool=[5, 0, 7])])[0]
    assert (ranking.items, ranking.scores) == ([], [])
    assert np.allclose(ranking.pool_scores, w.scores(prompt(30), None)[[5, 0, 7]], rtol=0, atol=1e-3)


def test_a_known_prompt_changes_no_score() -> None:
    w = world()
    plain, caching = w.engine(), w.engine(cache_bytes=1 << 20)
    pool = np.random.default_rng(0).permutation(w.items)[:25].tolist()
    for ids, known in ((prompt(70), 0), ([*prompt(70), 5, 6], 70), ([*prompt(70)[:40], 9], 40)):
        request = RankRequest(ids, 5, 10, pool=pool, levels=2)
        found = caching.rank([request])[0]
        assert found.cached_tokens == known
        assert_same_ranking(found, plain.rank([request])[0])


def test_a_pool_comes_from_the_version_of_its_request() -> None:
    w = world(items=60)
    engine = w.engine()
    smaller = Allowed.of(Trie.build(w.codes[:10]))
    ours, theirs = engine.rank(
        [RankRequest(prompt(30), 5, 5, pool=[9, 59]), RankRequest(prompt(30), 5, 5, smaller, pool=[9, 2])]
    )
    expected = w.scores(prompt(30), None)
    assert np.allclose(ours.pool_scores, expected[[9, 59]], rtol=0, atol=1e-3)
    assert np.allclose(theirs.pool_scores, expected[[9, 2]], rtol=0, atol=1e-3)


def test_an_item_that_was_removed_can_be_scored() -> None:
    w = world()
    trie = Trie.build(w.codes)
    living = SlotSet.of_members(trie.slot_of_item[[1, 2, 3]], trie.items)
    engine = TorchEngine(w.model, trie, w.vocabulary, living=living)
    ranking = engine.rank([RankRequest(prompt(30), 60, 60, pool=[0, 1])])[0]
    assert sorted(ranking.items) == [1, 2, 3]
    assert np.allclose(ranking.pool_scores, w.scores(prompt(30), None)[:2], rtol=0, atol=1e-3)


def test_who_is_gone_gets_no_scores_and_a_bad_pool_fails_alone() -> None:
    engine = world().engine()
    request = RankRequest(prompt(30), 5, 10, pool=[1, 2])
    late, answered = engine.rank([replace(request, deadline=0.0), request])
    assert (late.expired, late.pool_scores) == (True, [])
    assert len(answered.pool_scores) == 2
    for bad in (replace(request, pool=[60]), replace(request, levels=4)):
        outcomes: dict[int, object] = {}
        engine.serve({0: request, 1: bad}, dict, outcomes.update)
        assert isinstance(outcomes[1], EngineError)
        assert_same_ranking(outcomes[0], answered)  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_the_state_is_what_the_first_code_is_predicted_from(backbone: str, cache_bytes: int) -> None:
    w = world(backbone=backbone)
    engine = w.engine(cache_bytes=cache_bytes)
    rows = w.model.get_output_embeddings().weight[slice(*w.vocabulary.span(0))].detach()
    for _ in range(2):  # the second time, most of the prompt may come from the cache
        request = RankRequest(prompt(95), 1, 1, pool=range(w.items), levels=1, state=True)
        alone, others = (
            engine.rank([request])[0],
            engine.rank([replace(request, prompt=prompt(30)), request])[1],
        )
        for found in (alone, others):
            codes = (rows @ torch.tensor(found.state)).log_softmax(0)
            assert np.allclose(codes[w.codes[:, 0]], found.pool_scores, rtol=0, atol=1e-3)
    assert engine.rank([replace(request, state=False)])[0].state == []
