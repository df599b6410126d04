"""The torch engine, compared with `transformers.generate` and with brute force over the whole catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.bundles import make_model
from support.engines import assert_same_ranking
from support.references import found_items, identifier_scores, legal_next
from transformers import (
    GPTNeoConfig,
    GPTNeoForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from index.identifiers.identifiers import Identifiers
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.contract import EngineError, Ranking, RankRequest
from server.engine.options import EngineOptions, Precision
from server.engine.torch_backend import search
from server.engine.torch_backend.engine import TorchEngine, on_device
from server.engine.torch_backend.forward_input import ForwardInput
from server.engine.torch_backend.search import Search
from training.config import TrainConfig
from training.model.backbones import load_backbone
from training.model.extension import extend_backbone

TEXT_TOKENS = 40
LENGTHS = (1, 7, 30, 95)


@dataclass
class World:
    model: PreTrainedModel
    codes: np.ndarray
    vocabulary: IdentifierVocabulary

    def engine(self, normalisation: str, packed: Precision | None = "float32", **options: int) -> TorchEngine:
        return TorchEngine(
            self.model,
            Trie.build(self.codes),
            self.vocabulary,
            normalisation=normalisation,
            options=EngineOptions(precision=packed, **options),
        )


@cache
def world(arch: str = "llama", items: int = 120, levels: int = 3, seed: int = 0) -> World:
    """A random transformer and a catalogue whose identifiers share prefixes unevenly."""
    rng = np.random.default_rng(seed)
    table = np.unique(rng.integers(0, 8, (items * 3, levels)) ** 2 // 8, axis=0)
    codes = rng.permutation(table)[:items]
    vocabulary = IdentifierVocabulary(TEXT_TOKENS, tuple(int(k) for k in codes.max(0) + 1))
    return World(make_model(vocabulary.size, arch, positions=128, seed=seed), codes, vocabulary)


def draw_allowed(data: st.DataObject, trie: Trie) -> tuple[Allowed, list[int]]:
    """Draw a choice of items with exclusions; return it with the remaining catalogue rows."""
    some = st.sets(st.integers(0, trie.items - 1))
    chosen, excluded = data.draw(st.none() | some), data.draw(some)
    slots = None
    if chosen is not None:
        slots = SlotSet.of_members(trie.slot_of_item[sorted(chosen)], trie.items)
    left = (set(range(trie.items)) if chosen is None else chosen) - excluded
    return Allowed.of(trie, slots, sorted(excluded)), sorted(left)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(1, TEXT_TOKENS + 3, length).tolist()


def generate(w: World, ids: list[int], width: int) -> tuple[list[int], list[float]]:
    """Run constrained beam search of transformers; return items and summed log-probabilities."""
    tokens = w.vocabulary.tokens(w.codes)
    output = w.model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=w.vocabulary.levels,
        do_sample=False,
        length_penalty=0.0,
        eos_token_id=None,
        pad_token_id=0,
        prefix_allowed_tokens_fn=legal_next(tokens, len(ids)),
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    if width == 1:  # greedy search does not report its score
        new = output.sequences[0, len(ids) :]
        log_p = [logits[0].log_softmax(-1)[token] for logits, token in zip(output.logits, new, strict=True)]
        output.sequences_scores = torch.stack(log_p).sum().unsqueeze(0)
    return found_items(output, tokens, len(ids))


def brute_force(w: World, ids: list[int], normalisation: str) -> np.ndarray:
    """Return log p(identifier | prompt) of every item, with one plain forward pass each."""
    tokens = torch.from_numpy(w.vocabulary.tokens(w.codes))
    full = torch.cat([torch.tensor([ids]).expand(len(tokens), -1), tokens], dim=1)
    with torch.inference_mode():
        logits = w.model(full).logits[:, len(ids) - 1 : -1].double()
    return identifier_scores(logits, w.codes, w.vocabulary, normalisation)


def assert_same(ranking: Ranking, items: list[int], scores: list[float], tolerance: float = 1e-3) -> None:
    """Check for equal items in the same order. Items may change places if their scores agree up to rounding of fp32."""
    assert sorted(ranking.items) == sorted(items)
    score_of = dict(zip(items, scores, strict=True))
    assert np.allclose([score_of[item] for item in ranking.items], scores, rtol=0, atol=1e-5)
    assert np.allclose(ranking.scores, scores, rtol=0, atol=tolerance)


@pytest.mark.parametrize("packed", [None, "float32"])
@pytest.mark.parametrize("arch", ["llama", "gpt-neox", "qwen2", "qwen3"])
@pytest.mark.parametrize("width", [1, 10, 50])
def test_equals_transformers_generate(arch: str, width: int, packed: Precision | None) -> None:
    w = world(arch)
    engine = w.engine("vocabulary", packed)
    requests = [RankRequest(prompt(length), width, width) for length in LENGTHS]
    together = engine.rank(requests)
    for request, batched in zip(requests, together, strict=True):
        items, scores = generate(w, list(request.prompt), width)
        assert_same(batched, items, scores)
        assert_same(engine.rank([request])[0], items, scores)


@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_a_beam_as_wide_as_the_catalogue_ranks_every_item_as_brute_force_does(
    normalisation: str, levels: int
) -> None:
    w = world(items=100, levels=levels, seed=levels)
    n = len(w.codes)
    for length in LENGTHS:
        ranking = w.engine(normalisation).rank([RankRequest(prompt(length), n, n)])[0]
        expected = brute_force(w, prompt(length), normalisation)
        assert sorted(ranking.items) == list(range(n))
        assert np.allclose(ranking.scores, expected[ranking.items], atol=1e-3)
        assert all(a >= b for a, b in zip(ranking.scores, ranking.scores[1:], strict=False))


@given(
    st.lists(
        st.tuples(st.sampled_from(LENGTHS), st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=6
    )
)
@settings(max_examples=25, deadline=None)
def test_an_answer_does_not_depend_on_its_neighbours(shapes: list[tuple[int, int, int]]) -> None:
    engine = world().engine("level")
    requests = [
        RankRequest(prompt(length, k), limit, width) for k, (length, width, limit) in enumerate(shapes)
    ]
    for request, ranking in zip(requests, engine.rank(requests), strict=True):
        alone = engine.rank([request])[0]
        assert_same(ranking, alone.items, alone.scores, 1e-4)
        assert len(ranking.items) <= request.limit


def test_what_is_known_of_a_prompt_changes_no_answer() -> None:
    """Later requests with the same history have one more event, another query, or another user in between."""
    w = world()
    plain, caching = w.engine("level"), w.engine("level", cache_bytes=1 << 20)
    history, other = prompt(70, 1), prompt(80, 2)
    asked = [[*history[:40], 3], [*history[:40], 5, 6], other, [*history[:60], 3], [*history, 5, 9], other]
    cached = []
    for ids in asked:
        request = RankRequest(ids, 10, 20, shared_tokens=len(ids) - 1)
        together = caching.rank([request, RankRequest(prompt(30), 5, 5)])
        expected = plain.rank([request])[0]
        assert_same(together[0], expected.items, expected.scores, 1e-4)
        cached.append(together[0].cached_tokens)
    assert cached == [0, 40, 0, 40, 60, 79]
    before = len(caching.cache)
    caching.rank([RankRequest(prompt(50, 7), 5, 5, shared_tokens=0)])
    assert len(caching.cache) == before  # no part of it is worth caching


def test_hypotheses_that_cannot_win_are_dropped_and_no_answer_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A confident model needs only the best hypotheses in the last pass."""
    codes = np.unique(np.random.default_rng(0).integers(0, 20, (2000, 3)), axis=0)
    vocabulary = IdentifierVocabulary(TEXT_TOKENS, (20, 20, 20))
    model = make_model(vocabulary.size, positions=128)
    with torch.no_grad():
        model.get_output_embeddings().weight[vocabulary.first_added :] *= 3
    engine = TorchEngine(model, Trie.build(codes), vocabulary)
    fed: list[int] = []
    feed = Search.next_inputs

    def counted(running: Search) -> list[ForwardInput]:
        found = feed(running)
        if running.level == vocabulary.levels - 1:
            fed.append(len(found[0].ids))
        return found

    monkeypatch.setattr(Search, "next_inputs", counted)
    spared = 0
    for seed in range(20):
        for limit in (1, 3, 10, 25):
            short = engine.rank([RankRequest(prompt(30, seed), limit, 50)])[0]
            spared += 50 - sum(fed)
            passes, fed[:] = len(fed), []
            assert passes in (1, 2)
            whole = engine.rank([RankRequest(prompt(30, seed), 50, 50)])[0]
            assert len(short.items) == limit
            assert_same(short, whole.items[:limit], whole.scores[:limit], 1e-4)
            fed.clear()
    assert spared > 0


def passes_of(engine: TorchEngine, request: RankRequest) -> tuple[Ranking, list[int]]:
    """Return the answer, and the number of rows of each forward pass."""
    rows: list[int] = []
    forward = engine._backbone.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            engine._backbone,
            "forward",
            lambda feeds: (rows.append(sum(len(feed.ids) for feed in feeds)), forward(feeds))[1],
        )
        return engine.rank([request])[0], rows


def test_what_the_trie_makes_certain_is_fed_ahead() -> None:
    """Each of eight first codes leads to 40 items with three codes of their own."""
    rng = np.random.default_rng(0)
    codes = np.column_stack([np.repeat(np.arange(8), 40), np.tile(rng.permutation(64)[:40], 8)])
    codes = np.column_stack([codes, rng.integers(0, 64, (320, 2))])
    vocabulary = IdentifierVocabulary(TEXT_TOKENS, (8, 64, 64, 64))
    trie = Trie.build(codes)
    engine = TorchEngine(make_model(vocabulary.size, positions=128), trie, vocabulary)
    # The first codes with the prompt; then all other codes of 20 items.
    assert passes_of(engine, RankRequest(prompt(30), 20, 20))[1] == [30 + 8, 20 + 20]
    # Few candidates are scored with the prompt, in one pass.
    few = Allowed.of(trie, SlotSet.of_members(trie.slot_of_item[[3, 50, 51, 319]], trie.items))
    ranking, rows = passes_of(engine, RankRequest(prompt(30), 4, 4, few))
    assert sorted(ranking.items) == [3, 50, 51, 319]
    assert rows == [30 + 3 + 4 + 4]
    # A beam of one has no room for look-ahead, except for the few first codes.
    assert passes_of(engine, RankRequest(prompt(30), 1, 1))[1] == [30 + 8, 1 + 1]


@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_feeding_ahead_changes_no_answer(normalisation: str, data: st.DataObject) -> None:
    engine = world(items=150, levels=4).engine(normalisation)
    width, length = data.draw(st.integers(1, 60)), data.draw(st.sampled_from(LENGTHS))
    limit = data.draw(st.integers(1, width))
    allowed, left = draw_allowed(data, engine.everything.trie)
    request = RankRequest(prompt(length), limit, width, allowed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "SPARE_ROWS", data.draw(st.sampled_from([0, 8, 100])))
        patch.setattr(search, "FULL_PASS_ROWS", data.draw(st.sampled_from([10, 10_000])))
        ahead = engine.rank([request])[0]
        patch.setattr(search, "FULL_PASS_ROWS", 0)
        step_by_step, rows = passes_of(engine, request)
    assert len(rows) >= min(len(left), 1) * 4
    assert_same_ranking(ahead, step_by_step)


def test_a_request_whose_time_is_up_is_given_up_and_disturbs_nobody() -> None:
    engine = world().engine("level")
    request = RankRequest(prompt(30), 5, 10)
    late = RankRequest(prompt(95), 5, 10, deadline=0.0)
    first, second = engine.rank([late, request])
    assert first.expired
    assert first.items == []
    assert second.items == engine.rank([request])[0].items
    assert not second.expired


@pytest.mark.parametrize("arch", ["llama", "gpt-neox", "qwen2", "qwen3"])
@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.05), ("int8", 0.15)])
def test_fewer_bits_move_scores_a_little(arch: str, precision: Precision, tolerance: float) -> None:
    w = world(arch)
    n = len(w.codes)
    requests = [RankRequest(prompt(length), n, n) for length in LENGTHS]
    ours = w.engine("level", precision, cache_bytes=1 << 20)
    for request, expected in zip(requests, w.engine("level").rank(requests), strict=True):
        known = np.array(expected.scores)[np.argsort(expected.items)]
        for _ in range(2):  # the second time from the cache
            found = ours.rank([request])[0]
            scores = np.array(found.scores)[np.argsort(found.items)]
            assert np.abs(scores - known).mean() < tolerance * known.std()


def test_an_engine_that_is_not_packed_follows_its_model() -> None:
    """Validation ranks with weights that change during training."""
    w = world()
    model = make_model(w.vocabulary.size, positions=128)
    engine = TorchEngine(model, Trie.build(w.codes), w.vocabulary)
    request = RankRequest(prompt(30), 10, 20)
    before = engine.rank([request])[0]
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight))
    fresh = TorchEngine(model, Trie.build(w.codes), w.vocabulary, options=EngineOptions(precision="float32"))
    after = engine.rank([request])[0]
    assert_same(fresh.rank([request])[0], after.items, after.scores)
    assert after.scores != pytest.approx(before.scores, abs=0.1)


def test_small_passes_give_the_answers_of_large_ones() -> None:
    w = world()
    requests = [RankRequest(prompt(length, 3), 10, 20) for length in LENGTHS]
    for a, b in zip(
        w.engine("level").rank(requests), w.engine("level", max_batch_tokens=64).rank(requests), strict=True
    ):
        assert_same(a, b.items, b.scores, 1e-4)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_only_allowed_items_come_back_and_as_many_as_there_are(data: st.DataObject) -> None:
    w = world(items=60)
    n = len(w.codes)
    engine = w.engine("level")
    allowed, rows = draw_allowed(data, engine.everything.trie)
    ids = prompt(data.draw(st.sampled_from(LENGTHS)))
    ranking = engine.rank([RankRequest(ids, n, n, allowed)])[0]
    assert sorted(ranking.items) == rows
    expected = brute_force(w, ids, "level")
    assert np.allclose(ranking.scores, expected[ranking.items], atol=1e-3)
    limit = data.draw(st.integers(1, n))
    short = engine.rank([RankRequest(ids, limit, 1, allowed)])[0]
    assert len(short.items) == min(limit, len(rows))
    assert set(short.items) <= set(rows)


def test_each_request_is_answered_from_its_own_version_of_the_index() -> None:
    """One batch has three catalogues: the one at the opening of the engine, a larger and a smaller one."""
    w = world(items=60)
    engine = w.engine("level")
    sizes = (60, 75, 8)
    more = np.unique(
        np.random.default_rng(5).integers(0, w.codes.max(0) + 1, (300, w.codes.shape[1])), axis=0
    )
    codes = np.concatenate([w.codes, more])[: max(sizes)]
    tries = [Trie.build(codes[:size]) for size in sizes]
    requests = [RankRequest(prompt(30), 100, 100, Allowed.of(trie)) for trie in tries]
    for ranking, request, size in zip(engine.rank(requests), requests, sizes, strict=True):
        assert sorted(ranking.items) == list(range(size))
        alone = engine.rank([request])[0]
        assert_same(ranking, alone.items, alone.scores, 1e-4)
    with pytest.raises(EngineError, match="identifiers of 3 codes"):
        engine.rank([RankRequest(prompt(7), 1, 1, Allowed.of(Trie.build(w.codes[:, :2])))])


def test_items_that_share_an_identifier_come_back_together() -> None:
    w = world()
    codes = np.concatenate([w.codes, w.codes[:10]])
    engine = TorchEngine(w.model, Trie.build(codes), w.vocabulary)
    n = len(codes)
    ranking = engine.rank([RankRequest(prompt(7), n, n, Allowed.of(engine.everything.trie, excluded=[3]))])[0]
    assert sorted(ranking.items) == sorted(set(range(n)) - {3})
    scores = dict(zip(ranking.items, ranking.scores, strict=True))
    assert scores[5] == scores[len(w.codes) + 5]


def test_equal_scores_come_in_leaf_order() -> None:
    w = world()
    model = make_model(w.vocabulary.size, "llama", positions=128)
    with torch.no_grad():
        model.get_output_embeddings().weight[w.vocabulary.first_added :] = 0  # every code equally likely
    trie = Trie.build(w.codes)
    ranking = TorchEngine(model, trie, w.vocabulary).rank([RankRequest(prompt(7), 200, 200)])[0]
    expected = [int(trie.items_of(leaf)[0]) for leaf in range(trie.leaves)]
    assert ranking.items == expected[: len(ranking.items)]
    assert len(ranking.items) == len(w.codes)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_catalogue_is_ranked_as_brute_force_does(data: st.DataObject) -> None:
    """Catalogues have one item or more, levels with one code, and items that share an identifier."""
    shape = data.draw(st.tuples(st.integers(1, 25), st.integers(1, 4)))
    codes = data.draw(arrays(np.int32, shape, elements=st.integers(0, 4)))
    sizes = tuple(int(k) for k in codes.max(0) + 1)
    vocabulary = IdentifierVocabulary(TEXT_TOKENS, sizes)
    w = World(make_model(vocabulary.size, positions=128), codes, vocabulary)
    engine = w.engine("level")
    allowed, rows = draw_allowed(data, engine.everything.trie)
    ids = prompt(data.draw(st.sampled_from(LENGTHS)))
    ranking = engine.rank([RankRequest(ids, 30, 30, allowed)])[0]
    assert sorted(ranking.items) == rows
    assert np.allclose(ranking.scores, brute_force(w, ids, "level")[ranking.items], atol=1e-3)


def test_architectures_that_the_engine_would_get_wrong_are_refused() -> None:
    w = world()
    size = w.vocabulary.size
    shared = {
        "vocab_size": size,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    neo = GPTNeoForCausalLM(GPTNeoConfig(**shared, attention_types=[[["global"], 2]], initializer_range=0.3))
    biased = GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=size, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32))  # fmt: skip
    biased.lm_head = torch.nn.Linear(16, size, bias=True)
    with torch.no_grad():
        biased.lm_head.bias += 3
    sliding = MistralForCausalLM(MistralConfig(vocab_size=size, hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, intermediate_size=32, sliding_window=8))  # fmt: skip
    for model, reason in ((neo, "tree attention"), (biased, "logits"), (sliding, "window of 8")):
        for packed in (None, "float32"):
            with pytest.raises(EngineError, match=reason):
                TorchEngine(
                    model.eval(), Trie.build(w.codes), w.vocabulary, options=EngineOptions(precision=packed)
                )
    with pytest.raises(EngineError, match="int8 is there for"):
        TorchEngine(neo.eval(), Trie.build(w.codes), w.vocabulary, options=EngineOptions(precision="int8"))


def test_weights_that_are_not_finite_are_reported_not_ranked() -> None:
    w = world()
    model = make_model(w.vocabulary.size, positions=128)
    engine = TorchEngine(model, Trie.build(w.codes), w.vocabulary)
    with torch.no_grad():
        model.get_output_embeddings().weight[w.vocabulary.first_added + 5] = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        engine.rank([RankRequest(prompt(7), 5, 5)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("arch", ["llama", "gpt-neox", "qwen3"])
@pytest.mark.parametrize("packed", [None, "float32"])
def test_a_gpu_gives_the_answers_of_a_cpu(arch: str, packed: Precision | None) -> None:
    w = world(arch)
    model = make_model(w.vocabulary.size, arch, positions=128).to("cuda")
    there = TorchEngine(
        model, Trie.build(w.codes), w.vocabulary, options=EngineOptions(precision=packed, cache_bytes=1 << 20)
    )
    requests = [RankRequest(prompt(length, 3), 10, 20) for length in LENGTHS]
    expected = w.engine("level").rank(requests)
    for _ in range(2):  # the second time from the cache
        for ours, theirs in zip(there.rank(requests), expected, strict=True):
            assert_same(ours, theirs.items, theirs.scores)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(EngineError, match="no GPU is there"):
        on_device(world().model, "cuda")


@pytest.mark.slow
def test_equals_generate_on_the_whole_smollm2() -> None:
    backbone = load_backbone(TrainConfig(), [])
    codes = np.unique(np.random.default_rng(0).integers(0, 32, (2000, 4)), axis=0).astype(np.int32)
    identifiers = Identifiers("semantic", codes, (32,) * 4)
    vocabulary = extend_backbone(
        backbone, identifiers, [f"item {k}" for k in range(len(codes))], np.ones((1, 1))
    )
    rows = backbone.model.get_input_embeddings().weight
    with torch.no_grad():
        noise = torch.randn(len(rows) - vocabulary.first_added, rows.shape[1], generator=torch.manual_seed(0))
        rows[vocabulary.first_added :] = noise * rows.std()
    w = World(backbone.model.eval(), codes, vocabulary)
    for length, width in ((20, 50), (150, 10)):
        items, scores = generate(w, prompt(length), width)
        ranking = w.engine("vocabulary").rank([RankRequest(prompt(length), width, width)])[0]
        # Rounding grows over 30 layers, and with the scores, which are around −70 for random rows.
        assert_same(ranking, items, scores, tolerance=1e-4 * max(map(abs, scores)))


def test_prompts_and_bundles_that_do_not_fit_are_refused() -> None:
    w = world()
    with pytest.raises(EngineError, match="context"):
        w.engine("level").rank([RankRequest(prompt(127), 1, 1)])
    with pytest.raises(EngineError, match="no token"):
        RankRequest([], 1, 1)
    with pytest.raises(EngineError, match="at least 1"):
        RankRequest([1], 0, 1)
    with pytest.raises(EngineError, match="unknown"):
        w.engine("softmax")
    small = make_model(w.vocabulary.size - 1)
    with pytest.raises(EngineError, match="output rows"):
        TorchEngine(small, Trie.build(w.codes), w.vocabulary)
