"""The engine with T5, compared with `transformers.generate`, brute force and the model's own forward pass."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.engines import assert_same_ranking
from support.references import found_items, identifier_scores, legal_next
from support.t5 import KINDS, make_t5

from index.sequence.language_model import load_language_model
from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed, SlotSet
from index.trie.trie import Trie
from server.engine.contract import EngineError, RankRequest
from server.engine.options import EngineOptions
from server.engine.torch_backend.attention import KeyValues, Segment
from server.engine.torch_backend.encoder_decoder import DecoderInput, Encoded, EncoderDecoder
from server.engine.torch_backend.engine import TorchEngine

TEXT_TOKENS = 40
LENGTHS = (1, 7, 30, 95)
START = 0


class World:
    """A random T5 and a catalogue whose identifiers share prefixes unevenly."""

    def __init__(self, kind: str, items: int, levels: int) -> None:
        rng = np.random.default_rng(levels)
        table = np.unique(rng.integers(0, 8, (items * 3, levels)) ** 2 // 8, axis=0)
        self.codes = rng.permutation(table)[:items]
        self.vocabulary = IdentifierVocabulary(TEXT_TOKENS, tuple(int(k) for k in self.codes.max(0) + 1))
        self.tokens = self.vocabulary.tokens(self.codes)
        self.model = make_t5(self.vocabulary.size, kind)

    def engine(self, normalisation: str, **options: int) -> TorchEngine:
        return TorchEngine(
            self.model,
            Trie.build(self.codes),
            self.vocabulary,
            normalisation=normalisation,
            options=EngineOptions(precision=None, **options),
        )


@cache
def world(kind: str = "v1.0", items: int = 120, levels: int = 3) -> World:
    return World(kind, items, levels)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(1, TEXT_TOKENS + 3, length).tolist()


def generate(w: World, ids: list[int], width: int) -> tuple[list[int], list[float]]:
    """Run constrained beam search of transformers; return items and summed log-probabilities."""
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
        use_cache=False,  # transformers counts its layers by the encoder
        prefix_allowed_tokens_fn=legal_next(w.tokens, 1),
        return_dict_in_generate=True,
        output_scores=True,
    )
    return found_items(output, w.tokens, 1)


def brute_force(w: World, ids: list[int], normalisation: str) -> np.ndarray:
    """Return log p(identifier | prompt) of every item, from the model's teacher-forced logits."""
    tokens = torch.from_numpy(w.tokens)
    start = torch.full((len(tokens), 1), START)
    with torch.inference_mode():
        encoded = w.model.encoder(torch.tensor([ids])).last_hidden_state
        logits = w.model(
            encoder_outputs=(encoded.expand(len(tokens), -1, -1),),
            decoder_input_ids=torch.cat([start, tokens[:, :-1]], dim=1),
        ).logits.double()
    return identifier_scores(logits, w.codes, w.vocabulary, normalisation)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [10, 50])
def test_equals_transformers_generate(kind: str, width: int) -> None:
    w = world(kind)
    engine = w.engine("vocabulary")
    requests = [RankRequest(prompt(length), width, width) for length in LENGTHS]
    for request, ranking in zip(requests, engine.rank(requests), strict=True):
        items, scores = generate(w, list(request.prompt), width)
        assert ranking.items == items
        assert np.allclose(ranking.scores, scores, rtol=0, atol=1e-3)
        assert_same_ranking(engine.rank([request])[0], ranking)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("normalisation", ["level", "vocabulary"])
@pytest.mark.parametrize("levels", [1, 4])
def test_a_beam_as_wide_as_the_catalogue_ranks_every_item_as_brute_force_does(
    kind: str, normalisation: str, levels: int
) -> None:
    w = world(kind, 100, levels)
    n = len(w.codes)
    for length in LENGTHS:
        ranking = w.engine(normalisation).rank([RankRequest(prompt(length), n, n)])[0]
        expected = brute_force(w, prompt(length), normalisation)
        assert sorted(ranking.items) == list(range(n))
        assert np.allclose(ranking.scores, expected[ranking.items], atol=1e-3)
        assert expected.std() > 0.5  # the scores tell items apart


@given(
    st.lists(
        st.tuples(st.sampled_from(LENGTHS), st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=5
    )
)
@settings(max_examples=15, deadline=None)
def test_an_answer_does_not_depend_on_its_neighbours(shapes: list[tuple[int, int, int]]) -> None:
    engine = world("v1.1").engine("level")
    requests = [RankRequest(prompt(n, k), limit, width) for k, (n, width, limit) in enumerate(shapes)]
    for request, ranking in zip(requests, engine.rank(requests), strict=True):
        alone = engine.rank([request])[0]
        assert_same_ranking(ranking, alone)
        assert ranking.cached_tokens == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_bias_of_positions_counts_depth_not_place_in_the_flattened_beam(kind: str) -> None:
    """Many rows of one depth in one pass equal each row alone; a bias by position in the beam would differ."""
    w = world(kind)
    forward = EncoderDecoder(w.model)
    layers = w.model.config.num_decoder_layers
    ids = prompt(30)
    tokens = torch.arange(1, 41)  # 40 hypotheses that share a parent

    def decode(rows: torch.Tensor) -> torch.Tensor:
        memory, encoded = KeyValues(layers, 1 + len(rows)), Encoded(ids)
        start = Segment(memory, 0, 1)
        forward.forward(
            [DecoderInput(torch.tensor([START]), torch.zeros(1, dtype=torch.long), start, {}, encoded)]
        )
        own = torch.arange(1, 1 + len(rows)).unsqueeze(1)
        depth = torch.ones(len(rows), dtype=torch.long)
        return forward.forward(
            [DecoderInput(rows, depth, Segment(memory, 1, len(rows), 1, own), {}, encoded)]
        )

    with torch.inference_mode():
        together = decode(tokens)
        alone = torch.cat([decode(token.unsqueeze(0)) for token in tokens])
        assert torch.allclose(together, alone, atol=1e-4)
        plain = w.model(
            input_ids=torch.tensor([ids]).expand(40, -1),
            decoder_input_ids=torch.stack([torch.zeros_like(tokens), tokens], 1),
        ).logits[:, -1]
        assert torch.allclose(together @ w.model.lm_head.weight.T, plain, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_encoded_once_and_its_keys_are_stored_once(kind: str) -> None:
    w = world(kind)
    passes: list[int] = []
    block = w.model.decoder.block[0].layer[1].EncDecAttention
    handle = block.k.register_forward_hook(lambda _, x, __: passes.append(len(x[0])))
    try:
        w.engine("level").rank([RankRequest(prompt(30), 50, 50), RankRequest(prompt(7), 20, 20)])
    finally:
        handle.remove()
    assert passes.count(37) == 1  # both prompts together; before that, the engine checks itself
    assert passes[-1] == 37


def test_only_allowed_items_come_back_and_from_the_version_of_the_request() -> None:
    w = world(items=60)
    engine = w.engine("level")
    trie = engine.everything.trie
    chosen, excluded = [3, 5, 8, 13, 21, 34], [5, 34]
    slots = SlotSet.of_members(trie.slot_of_item[chosen], trie.items)
    small = Trie.build(w.codes[:10])
    requests = [
        RankRequest(prompt(30), 60, 60, Allowed.of(trie, slots, excluded)),
        RankRequest(prompt(30), 60, 60, Allowed.of(small)),
    ]
    first, second = engine.rank(requests)
    expected = brute_force(w, prompt(30), "level")
    assert sorted(first.items) == [3, 8, 13, 21]
    assert sorted(second.items) == list(range(10))
    for ranking in (first, second):
        assert np.allclose(ranking.scores, expected[ranking.items], atol=1e-3)


def test_a_late_request_is_given_up_and_nothing_is_cached() -> None:
    engine = world().engine("level", cache_bytes=1 << 20)
    request = RankRequest(prompt(30), 5, 10)
    late, answered = engine.rank([RankRequest(prompt(95), 5, 10, deadline=0.0), request])
    assert late.expired
    assert answered.items == engine.rank([request])[0].items
    assert len(engine.cache) == 0
    assert engine.rank([request])[0].cached_tokens == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_ranks_nearly_as_float32(kind: str, tmp_path: Path) -> None:
    w = world(kind)
    w.model.save_pretrained(tmp_path)
    model = load_language_model(tmp_path, torch.bfloat16, local=True)
    assert model.shared.weight.dtype == torch.bfloat16
    half = TorchEngine(model, Trie.build(w.codes), w.vocabulary)
    n = len(w.codes)
    request = RankRequest(prompt(30), n, n)
    exact, found = w.engine("level").rank([request])[0], half.rank([request])[0]
    scores = dict(zip(exact.items, exact.scores, strict=True))
    theirs = dict(zip(found.items, found.scores, strict=True))
    assert np.corrcoef([scores[k] for k in range(n)], [theirs[k] for k in range(n)])[0, 1] > 0.99


def test_a_model_that_computes_something_else_is_refused() -> None:
    w = world("v1.1")
    model = make_t5(w.vocabulary.size, "v1.1")
    model.lm_head = torch.nn.Linear(32, w.vocabulary.size, bias=True)
    with torch.no_grad():
        model.lm_head.bias += 3
    with pytest.raises(EngineError, match="other logits"):
        TorchEngine(model.eval(), Trie.build(w.codes), w.vocabulary)
    with torch.no_grad():
        broken = make_t5(w.vocabulary.size)
        engine = TorchEngine(broken, Trie.build(w.codes), w.vocabulary)
        broken.shared.weight[w.vocabulary.first_added + 5] = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        engine.rank([RankRequest(prompt(7), 5, 5)])
