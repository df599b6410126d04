"""Bundles of several kinds in the vLLM engine, one after the other. Run by `make test-vllm`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from support.bundles import make_bundle
from support.engines import assert_same_ranking, hosted

from bench.untrained import publish_untrained
from index.bundle.bundle import Bundle
from server.app import create_app
from server.engine.contract import Engine, EngineBrokenError, EngineError, RankRequest
from server.engine.options import EngineOptions
from server.engine.process.open import open_engine
from server.engine.torch_backend.engine import TorchEngine
from server.engine.vllm_backend.engine import VllmEngine
from server.engine.vllm_backend.legal_tokens import LegalTokens
from server.settings import Settings

pytest.importorskip(
    "vllm.version", reason="vLLM is not installed here; 'make test-vllm' has an environment for it"
)
pytestmark = pytest.mark.vllm

Open = Callable[..., VllmEngine]
make = partial(make_bundle, hidden=128)


@pytest.fixture
def opened() -> Iterator[Open]:
    """Return `VllmEngine.open`; the engines that it opens are closed after the test."""
    with ExitStack() as engines:

        def open_(bundle: Bundle, cache_bytes: int = 1 << 30) -> VllmEngine:
            engine = VllmEngine.open(bundle, EngineOptions(engine="vllm", cache_bytes=cache_bytes))
            engines.callback(engine.close)
            return engine

        yield open_


def test_weights_that_are_not_finite_are_reported_and_leave_nothing_behind(
    opened: Open, tmp_path: Path
) -> None:
    bundle = Bundle.open(make(tmp_path / "bundle"))
    sound = RankRequest([7] * 30, 5, 5)
    expected = TorchEngine.open(bundle).rank([sound])[0]
    model = bundle.load_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[5] = torch.nan  # of one text token
    model.save_pretrained(bundle.path)
    engine = opened(bundle, 1 << 28)
    with pytest.raises(EngineError, match="not finite"):
        engine.rank([RankRequest([5] * 30, 5, 5), sound])
    assert not engine._llm.has_unfinished_requests()
    assert_same_ranking(engine.rank([sound])[0], expected)


def test_a_batch_that_vllm_fails_on_leaves_nothing_behind(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No requests and no blocks of the prefix cache remain; vLLM registers blocks before it computes them."""
    bundle = Bundle.open(make(tmp_path / "bundle"))
    request = RankRequest(list(range(1, 101)), 10, 20)
    expected = TorchEngine.open(bundle).rank([request])[0]
    engine = opened(bundle, 1 << 28)
    executor = engine._llm.model_executor
    execute = executor.execute_model

    def failing_after(steps: int) -> Callable[..., Any]:
        left = iter(range(steps))

        def execute_model(*args: Any, **options: Any) -> Any:
            if next(left, None) is None:
                raise RuntimeError("out of memory")
            return execute(*args, **options)

        return execute_model

    for steps in 0, 1:  # it fails at the prompt, or at the first codes
        monkeypatch.setattr(executor, "execute_model", failing_after(steps))
        with pytest.raises(EngineError, match="out of memory"):
            engine.rank([request])
        monkeypatch.undo()
        assert not engine._llm.has_unfinished_requests()
        again = engine.rank([request])[0]
        assert again.cached_tokens == 0
        assert_same_ranking(again, expected)
    monkeypatch.setattr(executor, "execute_model", failing_after(0))
    monkeypatch.setattr(engine._llm, "reset_prefix_cache", lambda: False)
    with pytest.raises(EngineBrokenError):
        engine.rank([request])


def test_backbones_from_scratch(opened: Open, tmp_path: Path) -> None:
    """GPT-NeoX is made by `gems train`. The torch engine runs first, because vLLM replaces parts of transformers."""
    bundle = Bundle.open(make(tmp_path / "bundle", arch="gpt-neox"))
    requests = [RankRequest(list(range(1, length)), 10, 20) for length in (3, 40, 200)]
    expected = TorchEngine.open(bundle).rank(requests)
    engine = opened(bundle, 1 << 28)
    for ranking, other in zip(engine.rank(requests), expected, strict=True):
        assert_same_ranking(ranking, other)


def test_a_bundle_that_vllm_cannot_run_is_refused(opened: Open, tmp_path: Path) -> None:
    bundle = Bundle.open(make_bundle(tmp_path / "bundle"))  # heads of 8 dimensions
    with pytest.raises(EngineError, match="vLLM cannot run"):
        opened(bundle)


def test_a_server_opens_it_by_its_options(tmp_path: Path) -> None:
    """Steps may be smaller than the prompt; impossible options are refused."""
    bundle = Bundle.open(make(tmp_path / "bundle"))

    def open_(**changes: Any) -> Engine:
        options = replace(EngineOptions(cache_bytes=1 << 28, engine="vllm"), **changes)
        return open_engine(bundle.path, bundle.info, bundle.index.trie, bundle.index.living, options)

    for changes, reason in (
        ({"cache_bytes": 1 << 16}, "with 0 MiB for keys and values"),
        ({"device": "tpu"}, "built for the device"),
    ):
        with pytest.raises(EngineError, match=reason):
            open_(**changes)
    request = RankRequest(list(range(1, 101)), 10, 50)
    expected = TorchEngine.open(bundle).rank([request])[0]
    engine = open_(max_batch_tokens=10)
    assert isinstance(engine, VllmEngine)
    try:
        assert_same_ranking(engine.rank([request])[0], expected)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("layers", "normalisation"), [(4, "level"), pytest.param(None, "vocabulary", marks=pytest.mark.slow)]
)
def test_a_pretrained_backbone(layers: int | None, normalisation: str, opened: Open, tmp_path: Path) -> None:
    """Both engines find the same ten items and the same first one, for 16 prompts and 10,000 identifiers."""
    path = publish_untrained(tmp_path / "bundle", items=10_000, layers=layers, normalisation=normalisation)
    bundle = Bundle.open(path)
    rng = np.random.default_rng(0)
    requests = [
        RankRequest(rng.integers(0, bundle.vocabulary.first_added, 20 * k).tolist(), 10, 20)
        for k in range(1, 17)
    ]
    reference, engine = TorchEngine.open(bundle), opened(bundle)
    ours, theirs = engine.rank(requests), reference.rank(requests)
    assert [ranking.items[0] for ranking in ours] == [ranking.items[0] for ranking in theirs]
    assert [len(set(a.items) & set(b.items)) for a, b in zip(ours, theirs, strict=True)] == [10] * 16
    for a, b in zip(ours, theirs, strict=True):
        assert np.allclose(a.scores, b.scores, rtol=0, atol=1e-3)


def test_the_second_model_runner_takes_its_processor() -> None:
    """The second runner needs a GPU or Triton for CPUs, so the test repeats only its calls of the processor."""
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor

    from server.engine.vllm_backend.processors import LegalRows, LegalSlots, processor_for

    assert processor_for(SimpleNamespace(use_v2_model_runner=False)) is LegalRows
    processor: Any = processor_for(SimpleNamespace(use_v2_model_runner=True))(None, None)
    assert isinstance(processor, LegalSlots)
    assert isinstance(processor, LogitsProcessor)
    legal = LegalTokens(np.array([2, 5], np.int32), 2, 0, 8)
    assert processor.add_request(3, SimpleNamespace(extra_args=legal.as_args()))
    assert not processor.add_request(1, SimpleNamespace(extra_args=None))
    processor.apply_staged_writes()
    mapping = np.array([1, 3], np.int32)
    on_device = torch.from_numpy(mapping)
    context = LogitsContext(on_device, on_device, mapping, on_device, on_device, on_device, mapping)
    logits = torch.randn(2, 10)
    scored = processor.apply(logits.clone(), context)
    assert torch.equal(scored[0], logits[0])
    assert scored[1].isfinite().nonzero().flatten().tolist() == [2, 5]
    assert torch.allclose(scored[1, [2, 5]], logits[1, :8].log_softmax(-1)[[2, 5]])
    processor.add_request(3, SimpleNamespace(extra_args=None))  # the slot has a new owner
    assert torch.equal(processor.apply(logits.clone(), context), logits)


def test_the_server_answers_with_it(opened: Open, tmp_path: Path) -> None:
    """Another thread than the one that opened the engine uses it, like the scheduler."""
    bundle = Bundle.open(make(tmp_path / "bundle"))
    question = {"query": "golden river", "history": [{"item_id": "item-3"}], "limit": 7}
    answers = []
    for engine in (opened(bundle), TorchEngine.open(bundle)):
        with TestClient(create_app(bundle, hosted(engine), Settings())) as client:
            response = client.post("/search", json=question)
        assert response.status_code == 200
        answers.append([item["item_id"] for item in response.json()["items"]])
    assert len(answers[0]) == 7
    assert answers[0] == answers[1]
