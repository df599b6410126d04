"""Memory that runs out for real: the batch fails, the engine goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from support.bundles import make_bundle
from support.limits import no_more_memory_than, open_with
from support.servers import wait_until

from index.bundle.bundle import Bundle
from server.engine.contract import EngineError, Outcome, Ranking, RankRequest
from server.engine.options import EngineOptions
from server.engine.process.engine_process import EngineProcess
from server.engine.process.template import CONTEXT
from server.engine.torch_backend.engine import TorchEngine

MIB = 2**20
HUGE = RankRequest([5] * 400_000, 5, 10, shared_tokens=0)  # 51 MiB for the embeddings alone


@pytest.fixture(scope="module")
def roomy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose model takes prompts of any length."""
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("roomy") / "bundle", max_tokens=1_000_000))


@pytest.fixture(scope="module")
def process(roomy: Bundle) -> Iterator[EngineProcess]:
    options = EngineOptions(threads=1, cache_bytes=MIB, max_batch_tokens=500_000)
    started = EngineProcess(roomy, options=options)
    started.start()
    yield started
    started.close()


def request(limit: int = 5) -> RankRequest:
    return RankRequest([5 + k % 30 for k in range(60)], limit, 10)


def outcomes_of(process: EngineProcess, batch: Sequence[RankRequest]) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    process.submit(dict(enumerate(batch)), outcomes.update)
    wait_until(lambda: len(outcomes) == len(batch))
    return [outcomes[number] for number in range(len(batch))]


def assert_answered(ranking: Ranking, expected: Ranking, cached: int) -> None:
    assert ranking.items == expected.items
    assert ranking.scores == pytest.approx(expected.scores, abs=1e-4)
    assert ranking.cached_tokens == cached


def test_a_batch_that_does_not_fit_the_memory_fails_and_the_next_is_answered(process: EngineProcess) -> None:
    expected, known = (process.rank([request()])[0] for _ in range(2))
    assert_answered(known, expected, 59)
    pid = process.pid
    assert pid is not None
    with no_more_memory_than(32 * MIB, pid):
        for batch in ([HUGE], [request(7), HUGE]):
            outcomes = outcomes_of(process, batch)
            assert [type(each) for each in outcomes] == [EngineError] * len(batch)
            assert all("not enough memory" in str(each) for each in outcomes)
            assert_answered(process.rank([request()])[0], expected, 0)  # what was kept was given back
            assert_answered(process.rank([request()])[0], expected, 59)
    assert process.pid == pid


def test_what_waits_behind_a_batch_that_does_not_fit_is_answered(process: EngineProcess) -> None:
    """Its beam is so wide, by its own word, that it may not be ranked beside the huge one."""
    wide = RankRequest(request().prompt, 5, 60_000)
    expected = process.rank([wide])[0]
    assert process.pid is not None
    with no_more_memory_than(32 * MIB, process.pid):
        failed, answered = outcomes_of(process, [HUGE, wide])
    assert isinstance(failed, EngineError)
    assert isinstance(answered, Ranking)
    assert_answered(answered, expected, 0)


def test_a_model_that_does_not_fit_the_memory_is_refused_by_name(tmp_path: Path) -> None:
    """At its file, and at the copy that the engine makes of it."""
    path = make_bundle(tmp_path / "bundle", hidden=1024)  # 74 MiB
    for extra in (32, 100, 170):
        ours, theirs = CONTEXT.Pipe()
        child = CONTEXT.Process(target=open_with, args=(extra * MIB, path, theirs))
        child.start()
        assert ours.poll(60)
        assert "does not fit the memory" in ours.recv()
        child.join(20)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
def test_a_batch_that_does_not_fit_a_gpu_fails_and_the_next_is_answered(roomy: Bundle) -> None:
    engine = TorchEngine.open(roomy, EngineOptions(device="cuda", cache_bytes=MIB))
    expected, known = (engine.rank([request()])[0] for _ in range(2))
    assert_answered(known, expected, 59)
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 32 * MIB) / total)
    try:
        with pytest.raises(EngineError, match="not enough memory"):
            engine.rank([HUGE])
        assert_answered(engine.rank([request()])[0], expected, 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
