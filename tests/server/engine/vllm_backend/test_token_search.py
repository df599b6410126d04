"""The search that requests next-token scores, answered by plain forward passes, compared with the torch engine."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import make_catalogue, make_model, make_spelled, make_tokenizer
from support.engines import assert_same_ranking
from transformers import PreTrainedModel

from index.bundle.bundle import Bundle
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.beam import best_items
from server.engine.contract import EngineError, Ranking, RankRequest
from server.engine.torch_backend.engine import TorchEngine
from server.engine.vllm_backend.engine import VllmEngine
from server.engine.vllm_backend.legal_tokens import LegalTokens, score_legal
from server.engine.vllm_backend.token_search import TokenSearch


@cache
def world(normalisation: str, spelled: bool) -> tuple[TorchEngine, PreTrainedModel]:
    """An engine over 60 items with semantic or spelled identifiers, and its model."""
    if spelled:
        catalogue = make_catalogue(60)
        tokenizer = make_tokenizer(catalogue.texts())
        codes = make_spelled([item.title for item in catalogue], tokenizer, 6).codes
        vocabulary = IdentifierVocabulary.spelling(len(tokenizer), 6)
    else:
        table = np.random.default_rng(0).integers(0, 6, (200, 3))
        codes = np.random.default_rng(1).permutation(np.unique(table, axis=0))[:60]
        vocabulary = IdentifierVocabulary(40, (6, 6, 6))
    model = make_model(vocabulary.size, positions=128)
    return TorchEngine(model, Trie.build(codes), vocabulary, normalisation=normalisation), model


def search(engine: TorchEngine, model: PreTrainedModel, request: RankRequest) -> Ranking:
    """Run the search; each of its requests takes one forward pass."""
    allowed = request.allowed or engine.everything
    rows = len(model.get_output_embeddings().weight)
    running = TokenSearch(request, allowed, engine.vocabulary, engine.normalisation, rows)
    while questions := running.ask():
        assert not running.answered
        for question in questions:
            with torch.inference_mode():
                logits = model(torch.tensor([question.tokens])).logits[:, -1]
                scores = score_legal(logits, {0: question.legal})[0]
            known = torch.isfinite(scores).nonzero().flatten()
            assert len(known) == question.legal.count
            assert set(known.tolist()) <= set(question.legal.tokens.tolist())
            running.answer(question.row, known.numpy(), scores[known].numpy())
        assert running.answered
    assert running.done
    items, scores = best_items(running.level, running.beam, allowed, request.limit)
    return Ranking(items, scores, pool_scores=running.pool_scores)


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
def test_the_torch_engine_finds_the_same(normalisation: str, spelled: bool) -> None:
    reference, model = world(normalisation, spelled)
    trie = reference.everything.trie
    rng = np.random.default_rng(0)
    for width in (1, 7, 60):
        chosen = None if width == 7 else SlotSet.of_members(rng.permutation(60)[:40], trie.items)
        allowed = Allowed.of(trie, chosen, rng.permutation(60)[:10].tolist())
        request = RankRequest(rng.integers(1, 40, 20).tolist(), width, width, allowed)
        assert_same_ranking(search(reference, model, request), reference.rank([request])[0])


@pytest.mark.parametrize("spelled", [False, True])
@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
def test_pools_and_levels_mean_the_same(normalisation: str, spelled: bool) -> None:
    """Items of the pool are in the beam or not, allowed or not; next to a beam that asks for its best codes only."""
    reference, model = world(normalisation, spelled)
    trie = reference.everything.trie
    rng = np.random.default_rng(0)
    for levels in (None, *range(1, trie.levels + 1)):
        for width, count in ((1, 60), (7, 10), (60, 1)):
            chosen = SlotSet.of_members(rng.permutation(60)[:40], trie.items)
            allowed = Allowed.of(trie, chosen, rng.permutation(60)[:10].tolist())
            pool = rng.permutation(60)[:count].tolist()
            ids = rng.integers(1, 40, 20).tolist()
            request = RankRequest(ids, width, width, allowed, pool=pool, levels=levels)
            ours = search(reference, model, request)
            assert len(ours.pool_scores) == count
            assert_same_ranking(ours, reference.rank([request])[0])


def test_a_request_is_answered_from_its_own_version_of_the_index() -> None:
    reference, model = world("level", False)
    smaller = Trie.build(reference.everything.trie.codes()[:8])
    request = RankRequest([1, 2, 3], 20, 20, Allowed.of(smaller))
    ours = search(reference, model, request)
    assert sorted(ours.items) == list(range(8))
    assert_same_ranking(ours, reference.rank([request])[0])


def test_where_nothing_is_allowed_nothing_is_asked() -> None:
    reference, _ = world("level", False)
    trie = reference.everything.trie
    nothing = Allowed.of(trie, SlotSet.of_members(np.zeros(0, np.int64), trie.items))
    running = TokenSearch(RankRequest([1], 5, 5, nothing), nothing, reference.vocabulary, "level", 61)
    assert running.ask() == []
    assert running.done
    pool = RankRequest([1], 5, 5, nothing, pool=[5, 0])
    ours = search(*world("level", False), pool)  # but the pool asks
    assert (ours.items, len(ours.pool_scores)) == ([], 2)
    assert_same_ranking(ours, reference.rank([pool])[0])


@given(st.data())
def test_scores_are_those_from_before_the_mask_and_the_best_are_kept(data: st.DataObject) -> None:
    draw = data.draw
    rows = draw(st.integers(1, 4))
    coarse = st.lists(st.integers(-3, 3), min_size=20, max_size=20)  # ties are common
    logits = torch.tensor([draw(coarse) for _ in range(rows)], dtype=torch.float32)
    legal = {}
    for row in draw(st.sets(st.integers(0, rows - 1))):
        first = draw(st.integers(0, 10))
        last = draw(st.integers(first + 1, 20))
        tokens = sorted(draw(st.sets(st.integers(first, last - 1), min_size=1)))
        count = draw(st.integers(1, len(tokens)))
        asked = LegalTokens(np.array(tokens, np.int32), count, first, last)
        legal[row] = LegalTokens.of_args(asked.as_args())
    scored = score_legal(logits.clone(), legal)
    for row in range(rows):
        if row not in legal:
            assert torch.equal(scored[row], logits[row])
            continue
        wanted = legal[row]
        expected = logits[row, wanted.first : wanted.last].log_softmax(-1)
        order = sorted(wanted.tokens.tolist(), key=lambda token: (-float(logits[row, token]), token))
        kept = torch.isfinite(scored[row]).nonzero().flatten().tolist()
        assert kept == sorted(order[: wanted.count])
        assert torch.equal(scored[row, kept], expected[torch.tensor(kept) - wanted.first])


def test_other_requests_have_no_legal_tokens() -> None:
    assert LegalTokens.of_args(None) is None
    assert LegalTokens.of_args({"theirs": 1}) is None


def test_scores_that_are_not_finite_are_reported() -> None:
    reference, _ = world("level", False)
    running = TokenSearch(RankRequest([1], 5, 5), reference.everything, reference.vocabulary, "level", 61)
    question = running.ask()[0]
    with pytest.raises(EngineError, match="not finite"):
        running.answer(question.row, question.legal.tokens[:1].astype(np.int64), np.array([np.nan]))


def test_without_vllm_its_engine_says_where_to_find_it(tiny_bundle: Path) -> None:
    try:
        from vllm import LLMEngine  # noqa: F401
    except ImportError:
        with pytest.raises(EngineError, match="environment of its own"):
            VllmEngine.open(Bundle.open(tiny_bundle))
    else:
        pytest.skip("vLLM is installed")


def test_code_that_comes_with_a_model_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="never run"):
        VllmEngine.open(Bundle.open(tiny_bundle), trust_remote_code=True)
