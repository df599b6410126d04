"""Padded passes compared with passes without padding: equal answers for any shapes, joins and neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.bundles import make_model
from support.engines import assert_same_ranking

from index.sequence.vocabulary import IdentifierVocabulary
from index.trie.allowed import Allowed
from index.trie.trie import Trie
from server.engine.contract import EngineError, Outcome, Ranking, RankRequest
from server.engine.options import EngineOptions, Precision
from server.engine.torch_backend import graphs
from server.engine.torch_backend.attention import KeyValues, Segment
from server.engine.torch_backend.decoder import Decoder
from server.engine.torch_backend.engine import TorchEngine
from server.engine.torch_backend.forward_input import ForwardInput
from server.engine.torch_backend.graphs import PaddedPasses, Shape
from server.engine.torch_backend.packed import dtype_of

LEVELS = 4
VOCABULARY = IdentifierVocabulary(40, (6, 6, 6, 6))
CODES = np.unique(np.random.default_rng(0).integers(0, 6, (250, LEVELS)), axis=0)
CPU = torch.device("cpu")


@cache
def engine(arch: str = "llama", precision: Precision = "float32", **options: int) -> TorchEngine:
    model = make_model(VOCABULARY.size, arch, positions=512).to(dtype_of(precision))
    return TorchEngine(
        model, Trie.build(CODES), VOCABULARY, options=EngineOptions(precision=precision, **options)
    )


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([seed, length]).integers(1, 43, length).tolist()


def served(
    engine: TorchEngine, requests: Mapping[int, RankRequest], steps: Mapping[int, int]
) -> dict[int, Outcome]:
    """Return the outcomes of requests that arrive before these steps."""
    outcomes: dict[int, Outcome] = {}
    step = -1

    def arrivals() -> dict[int, RankRequest]:
        nonlocal step
        step += 1
        return {number: requests[number] for number in requests if steps[number] == step}

    for _ in range(max(steps.values()) + 1):  # it ends when no request is in flight
        engine.serve({}, arrivals, outcomes.update)
    return outcomes


requests = st.builds(
    lambda length, limit, width, seed, pool, levels: RankRequest(
        prompt(length, seed), limit, width, pool=pool, levels=levels
    ),
    st.sampled_from([1, 5, 30, 90, 130, 300]),
    st.integers(1, 20),
    st.integers(1, 40),
    st.integers(0, 3),
    st.lists(st.integers(0, len(CODES) - 1), unique=True),
    st.sampled_from([None, LEVELS - 1]),
)


@given(st.lists(st.tuples(requests, st.integers(0, 6)), min_size=1, max_size=7), st.data())
@settings(max_examples=25, deadline=None)
def test_padding_changes_no_answer(asked: list[tuple[RankRequest, int]], data: st.DataObject) -> None:
    """Requests of all sizes join others at any step, with few kept shapes and the prefix cache."""
    arch = data.draw(st.sampled_from(["llama", "gpt-neox", "qwen3"]))
    padded = engine(arch, cuda_graphs=2, join_rows=10_000, cache_bytes=1 << 20)
    plain = engine(arch)
    by_number = {number: request for number, (request, _) in enumerate(asked)}
    outcomes = served(padded, by_number, {number: step for number, (_, step) in enumerate(asked)})
    for number, request in by_number.items():
        ranking = outcomes[number]
        assert isinstance(ranking, Ranking)
        assert_same_ranking(ranking, plain.rank([request])[0])


def passes(cuda_graphs: int = 4, slots: int = 4096, seed: int = 0) -> PaddedPasses:
    return PaddedPasses(decoder(seed), CPU, 3, slots, cuda_graphs)


@cache
def decoder(seed: int = 0) -> Decoder:
    return Decoder.of(make_model(VOCABULARY.size, seed=seed), "float32")


def feeds(
    sizes: list[tuple[int, int, int]], seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> list[ForwardInput]:
    """Return, for each (prompt, capacity, rows), a random beam of the second level after random keys and values."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length, capacity, rows in sizes:
        known = torch.randn(2, 2, 2, length + 3, 8, generator=generator)
        memory = KeyValues(2, capacity, known.to(device, dtype))
        parents = torch.randint(length, length + 3, (rows, 1), generator=generator)
        own = torch.cat([parents, torch.arange(rows).unsqueeze(1) + length + 3], 1)
        ids = torch.randint(0, VOCABULARY.size, (rows,), generator=generator)
        segment = Segment(memory, length + 3, rows, length, own)
        made.append(ForwardInput(ids, torch.full((rows,), length + 1), segment, {}))
    return made


def plain(fed: list[ForwardInput]) -> torch.Tensor:
    ids, positions = torch.cat([feed.ids for feed in fed]), torch.cat([feed.positions for feed in fed])
    return decoder()(ids, positions, [feed.segment for feed in fed])


sizes = st.tuples(st.integers(1, 200), st.integers(0, 150), st.integers(1, 40)).map(
    lambda size: (size[0], size[0] + 3 + size[2] + size[1], size[2])
)


@example([(118, 128, 7)], 0)  # it fills all of its slots: padding may not write there
@given(st.lists(sizes, min_size=1, max_size=5), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_a_padded_pass_gives_and_writes_what_a_plain_one_does(
    asked: list[tuple[int, int, int]], seed: int
) -> None:
    ours, theirs = feeds(asked, seed), feeds(asked, seed)
    with torch.inference_mode():
        hidden = passes().forward(ours)
        assert hidden is not None
        assert torch.allclose(hidden, plain(theirs), atol=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        filled = slice(one.segment.end)
        assert torch.allclose(
            one.segment.key_values.slots(filled), other.segment.key_values.slots(filled), atol=1e-4
        )


def test_more_padding_changes_nothing() -> None:
    """Rows stay the same in shapes that neighbours or capacity make larger."""
    alone = [(50, 80, 7)]
    with torch.inference_mode():
        expected = passes().forward(feeds(alone))
        assert expected is not None
        for larger in ([(50, 400, 7)], [*alone, (20, 100, 40)], [*alone, (300, 900, 3), (5, 20, 1)]):
            found = passes().forward(feeds(larger))
            assert found is not None
            assert torch.allclose(found[:7], expected, atol=1e-5)


def test_few_shapes_are_kept_and_similar_passes_share_one() -> None:
    padded = passes(cuda_graphs=2)
    with torch.inference_mode():
        for size in [(50, 80, 7), (20, 60, 8), (100, 127, 3)]:
            padded.forward(feeds([size]))
        assert padded.shapes == [Shape(1, 8, 128)]
        padded.forward(feeds([(100, 128, 3)]))
        padded.forward(feeds([(50, 80, 7)]))
        padded.forward(feeds([(50, 80, 7)] * 3))
    assert padded.shapes == [Shape(1, 8, 128), Shape(4, 8, 128)]


def test_passes_that_are_too_large_or_hold_a_prompt_are_not_taken() -> None:
    padded = passes(slots=256)
    asked = feeds([(50, 80, 7)])
    begun = ForwardInput(torch.arange(5), torch.arange(5), Segment(KeyValues(2, 20), 0, 5), {})
    with torch.inference_mode():
        assert padded.forward([*asked, begun]) is None
        assert padded.forward(feeds([(50, 80, 7)] * 3)) is None
        assert passes(cuda_graphs=0).forward(asked) is None
        assert padded.shapes == []
        assert padded.forward(asked) is not None


def test_numbers_that_are_not_finite_stay_with_their_request() -> None:
    """A token whose embedding is damaged fails its request; the next one uses the same buffers."""
    model = make_model(VOCABULARY.size, "gpt-neox", positions=512)
    with torch.no_grad():
        model.get_input_embeddings().weight[int(VOCABULARY.first_code[0]) + 3] = torch.nan
    padded = TorchEngine(
        model, Trie.build(CODES), VOCABULARY, options=EngineOptions(precision="float32", cuda_graphs=4)
    )
    fine = Trie.build(CODES[CODES[:, 0] != 3])
    request = RankRequest(prompt(30), 5, 40, Allowed.of(fine))
    expected = engine("gpt-neox").rank([request])[0]
    assert_same_ranking(padded.rank([request])[0], expected)
    with pytest.raises(EngineError, match="not finite"):
        padded.rank([RankRequest(prompt(30, 1), 40, 40)])
    assert_same_ranking(padded.rank([request])[0], expected)


def test_an_engine_whose_padded_passes_are_wrong_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows attend to nothing, like on a GPU that does not replay the captured pass."""
    monkeypatch.setattr(graphs, "attention_in_parts", lambda query, *_: torch.zeros_like(query))
    model = make_model(VOCABULARY.size)
    TorchEngine(model, Trie.build(CODES), VOCABULARY, options=EngineOptions(precision="float32"))
    with pytest.raises(EngineError, match="GEMS_CUDA_GRAPHS=0"):
        TorchEngine(
            model, Trie.build(CODES), VOCABULARY, options=EngineOptions(precision="float32", cuda_graphs=4)
        )


def test_an_engine_without_room_for_the_buffers_goes_on_without_them() -> None:
    vast = engine(cuda_graphs=4, max_batch_tokens=10**12)
    for length in (30, 90):
        request = RankRequest(prompt(length), 5, 20)
        assert_same_ranking(vast.rank([request])[0], engine().rank([request])[0])


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_fewer_bits_are_padded_alike(precision: Precision) -> None:
    asked = [RankRequest(prompt(length), len(CODES), len(CODES)) for length in (30, 90)]
    expected = engine(precision=precision).rank(asked)
    for ours, theirs in zip(engine(precision=precision, cuda_graphs=4).rank(asked), expected, strict=True):
        scores, reference = (np.array(each.scores)[np.argsort(each.items)] for each in (ours, theirs))
        assert np.abs(scores - reference).mean() < 0.05 * reference.std()


NO_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU that torch can use: no graph can be captured"
)


@NO_GPU
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 5e-2)])
def test_captured_graphs_replay_what_a_cpu_computes(precision: Precision, tolerance: float) -> None:
    dtype = dtype_of(precision)
    there = Decoder.of(make_model(VOCABULARY.size).to("cuda", dtype), precision)
    padded = PaddedPasses(there, torch.device("cuda"), 3, 4096, cuda_graphs=2)
    # More shapes than are kept, so that shapes are captured again.
    kinds = [[(50, 80, 7)], [(20, 60, 8)] * 3, [(100, 300, 3)]]
    for seed, asked in enumerate([*kinds, *kinds, kinds[-1], kinds[-2]]):
        with torch.inference_mode():
            found = padded.forward(feeds(asked, seed, "cuda", dtype))
            expected = plain(feeds(asked, seed))
        assert found is not None
        assert (found.float().cpu() - expected).norm() < tolerance * expected.norm()
    assert padded.shapes == [Shape(1, 8, 512), Shape(4, 8, 128)]


@NO_GPU
@pytest.mark.parametrize("arch", ["llama", "gpt-neox", "qwen3"])
def test_an_engine_with_captured_graphs_gives_the_answers_of_a_cpu(arch: str) -> None:
    model = make_model(VOCABULARY.size, arch, positions=512).to("cuda")
    there = TorchEngine(
        model,
        Trie.build(CODES),
        VOCABULARY,
        options=EngineOptions(precision="float32", cuda_graphs=4, cache_bytes=1 << 20),
    )
    asked = [RankRequest(prompt(length, seed), 10, 20) for seed in range(3) for length in (7, 90, 300)]
    for size in (1, 2, 3, 9):
        for ours, theirs in zip(there.rank(asked[:size]), engine(arch).rank(asked[:size]), strict=True):
            assert_same_ranking(ours, theirs)
