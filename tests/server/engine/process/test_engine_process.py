"""The engine in its own process: it gives the same rankings, and it may die, hang or be refused."""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.bundles import item_vectors, make_bundle
from support.engines import assert_same_ranking
from support.servers import wait_until

from index.bundle.bundle import INDEX, Bundle
from index.bundle.update import update_index
from index.bundle.versions import Versions
from index.catalogue import Item
from index.trie.allowed import Allowed, SlotSet
from server.api.errors import EngineUnavailableError
from server.engine.contract import EngineError, EngineLostError, Outcome, Ranking, RankRequest
from server.engine.options import EngineOptions
from server.engine.process import wire
from server.engine.process.child import WATCH_SECONDS
from server.engine.process.engine_process import TEMPLATE_SECONDS, EngineProcess
from server.engine.process.template import CONTEXT
from server.engine.process.wire import Chosen, WireRequest, decode_command, decode_reply, encode
from server.engine.process.worker import Worker
from server.engine.torch_backend.engine import TorchEngine
from server.serving.scheduler import Scheduler
from server.telemetry.metrics import Metrics


@pytest.fixture(scope="module")
def process(bundle: Bundle) -> Iterator[EngineProcess]:
    started = EngineProcess(bundle, options=EngineOptions(threads=1))
    started.start([RankRequest(bundle.encoder.prompt([]).ids, 5, 10)])
    yield started
    started.close()


def request(bundle: Bundle, limit: int = 5, allowed: Allowed | None = None) -> RankRequest:
    return RankRequest(bundle.encoder.prompt([], f"query {limit}").ids, limit, 10, allowed)


def freeze(process: EngineProcess) -> int:
    """Suspend the process: requests that it gets now are in flight until it is killed."""
    assert process.wait_running(20)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    return process.pid


def test_rankings_are_those_of_the_engine(
    bundle: Bundle, engine: TorchEngine, process: EngineProcess
) -> None:
    trie = bundle.index.trie
    half = SlotSet.of_members(np.arange(0, 60, 2), trie.items)
    few = SlotSet.of_members(np.array([3, 41]), trie.items)
    requests = [
        request(bundle, 7),
        request(bundle, 9, Allowed.of(trie)),
        request(bundle, 30, Allowed.of(trie, half, range(20))),
        request(bundle, 5, Allowed.of(trie, few)),
        request(bundle, 60, Allowed.of(trie, None, [1, 2, 3])),
    ]
    for theirs, ours in zip(process.rank(requests), engine.rank(requests), strict=True):
        assert theirs.items == ours.items
        assert theirs.scores == pytest.approx(ours.scores, abs=1e-5)
        assert theirs.seconds.keys() == ours.seconds.keys()


def test_pools_and_levels_travel(bundle: Bundle, engine: TorchEngine, process: EngineProcess) -> None:
    requests = [
        replace(request(bundle, limit), pool=pool, levels=levels, state=limit > 3)
        for limit, pool, levels in ((3, [], 1), (4, [59, 0, 7], None), (5, list(range(60)), 2))
    ]
    for theirs, ours, asked in zip(process.rank(requests), engine.rank(requests), requests, strict=True):
        assert_same_ranking(theirs, ours)
        assert len(theirs.pool_scores) == len(asked.pool)
        assert bool(theirs.state) == asked.state
    wrong = ({"pool": [60]}, "rows of this index version are 0 to 59"), ({"levels": 9}, "levels must be")
    for bad, reason in wrong:
        with pytest.raises(EngineError, match=reason):
            process.rank([replace(request(bundle), **bad)])


def a_value(name: str) -> object:
    """Return a value of a field of `RankRequest` that is not its default."""
    values = {
        "prompt": [3, 1],
        "limit": 7,
        "beam_width": 9,
        "shared_tokens": 1,
        "siblings": 2,
        "pool": [2, 0],
        "levels": 1,
        "state": True,
    }
    return {**values, "deadline": 1e300}[name]


def test_every_value_of_a_request_arrives_as_it_was(bundle: Bundle) -> None:
    """A field that is added to requests has to travel."""
    index = bundle.index
    allowed = Allowed.of(index.trie, index.living)
    names = [each.name for each in fields(RankRequest) if each.name not in ("allowed", "cancelled")]
    sent = RankRequest(**{name: a_value(name) for name in names}, allowed=allowed)  # type: ignore[arg-type]
    wired = WireRequest.of(sent, allowed, index.version, 0, index.living)
    command = decode_command(encode(wire.RankCommand(requests={0: wired})))
    assert isinstance(command, wire.RankCommand)
    arrived = command.requests[0].rank_request({index.version: [index.names.everything]}, bool)
    assert {name: getattr(arrived, name) for name in names} == {name: a_value(name) for name in names}


def test_every_value_of_a_ranking_arrives_as_it_was() -> None:
    sent = Ranking([3, 1], [-0.1, -1 / 3], {"head": 1e-3}, 5, True, [-1e-30, -7.25], [0.5, -1 / 3])
    for each in fields(Ranking):
        assert getattr(sent, each.name) not in ([], {}, 0, False), "give the new field a value"
    reply = decode_reply(encode(wire.Outcomes(rankings={2: sent}, failures={})))
    assert isinstance(reply, wire.Outcomes)
    assert reply.rankings == {2: sent}


@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_chosen_slots_arrive_as_they_were(member: list[bool]) -> None:
    chosen = SlotSet.of(np.array(member))
    again = Chosen.model_validate_json(Chosen.of(chosen).model_dump_json()).slot_set(len(member))
    assert np.array_equal(again.members, chosen.members)
    assert np.array_equal(again.bits.words, chosen.bits.words)


def test_a_failure_of_the_engine_concerns_its_batch_alone(bundle: Bundle, process: EngineProcess) -> None:
    pid = process.pid
    with pytest.raises(EngineError, match="leaves no room"):
        process.rank([RankRequest([1] * 1000, 5, 10)])
    assert process.rank([request(bundle)])[0].items
    assert process.pid == pid


def test_a_lost_process_is_replaced(bundle: Bundle, process: EngineProcess) -> None:
    expected = process.rank([request(bundle)])[0]
    pid = freeze(process)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: process.pid != pid and process.running)
    assert process.rank([request(bundle)])[0].items == expected.items


def template_pid() -> Any:
    return forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]


def has_ended(pid: int | None) -> bool:
    """Whether a process has ended, whether or not its parent has asked for its exit code."""
    return pid is None or not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_is_lost_late_is_replaced(bundle: Bundle, process: EngineProcess) -> None:
    """The supervisor looks after the template meanwhile, on a thread that may not touch signal handlers."""
    assert process.wait_running(20)
    time.sleep(2.5 * TEMPLATE_SECONDS)
    before = process.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while process.pid in (before, None) or not process.running:
        assert time.monotonic() < deadline, "the process was not replaced"
        time.sleep(0.05)
    assert process.rank([request(bundle, 3)])[0].items


def test_the_loss_of_the_template_costs_nothing(bundle: Bundle) -> None:
    """The engine goes on, also under commands, while another template imports; then it can be lost as before."""
    process = EngineProcess(bundle, options=EngineOptions(threads=1))
    restarts = []
    process.on_restart = lambda: restarts.append(process.pid)
    process.start()
    try:
        for _ in range(2):
            engine, template = process.pid, template_pid()
            os.kill(template, signal.SIGKILL)
            for _ in range(3):
                assert process.rank([request(bundle)])[0].items
            process.prepare(bundle.index)
            wait_until(lambda: template_pid() not in (template, None))  # noqa: B023
            assert process.running
            assert (process.pid, restarts) == (engine, [])
        os.kill(freeze(process), signal.SIGKILL)
        wait_until(lambda: len(restarts) == 1 and process.running, 60)
        assert process.rank([request(bundle)])[0].items
        template = template_pid()
        os.kill(template, signal.SIGKILL)
    finally:
        process.close()
    wait_until(lambda: has_ended(process.pid))  # killed without a template, too
    wait_until(lambda: has_ended(template))  # or the next start asks one that is about to end


def test_many_losses_in_a_row_are_each_replaced_without_a_pause(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only starts that fail are followed by pauses."""
    process = EngineProcess(bundle, options=EngineOptions(threads=1))
    process.start()
    pauses: list[float] = []
    waiting = process._closing.wait
    monkeypatch.setattr(process._closing, "wait", lambda seconds: pauses.append(seconds) or waiting(seconds))
    try:
        for _ in range(6):
            pid = process.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: process.pid != pid and process.running)  # noqa: B023
    finally:
        process.close()
    assert not any(pauses)


def test_a_process_that_hangs_is_replaced(bundle: Bundle) -> None:
    process = EngineProcess(bundle, options=EngineOptions(threads=1), stall_seconds=2.0)
    process.start()
    try:
        freeze(process)
        with pytest.raises(EngineLostError, match="2 s"):
            process.rank([request(bundle)])
        assert process.wait_running(20)
        assert process.rank([request(bundle)])[0].items
    finally:
        process.close()
    with pytest.raises(EngineLostError):
        process.rank([request(bundle)])


def test_a_process_that_does_not_read_is_replaced(bundle: Bundle) -> None:
    """A write waits for the reader as soon as the pipe is full."""
    process = EngineProcess(bundle, options=EngineOptions(threads=1), stall_seconds=1.0)
    process.start()
    try:
        pid = freeze(process)
        with pytest.raises(EngineLostError, match="1 s"):
            process.rank([RankRequest([1] * 2_000_000, 5, 10)])
        wait_until(lambda: process.pid != pid and process.running)
    finally:
        process.close()


def test_the_engine_leaves_a_request_for_which_nobody_waits(bundle: Bundle, process: EngineProcess) -> None:
    """The process is suspended with the batch in flight, so that the cancellation arrives before it computes."""
    cancelled = threading.Event()
    pid = freeze(process)
    with ThreadPoolExecutor(1) as pool:
        batch = [request(bundle), replace(request(bundle), cancelled=cancelled.is_set), request(bundle)]
        ranking = pool.submit(process.rank, batch)
        cancelled.set()
        time.sleep(5 * WATCH_SECONDS)
        os.kill(pid, signal.SIGCONT)
        answers = ranking.result(20)
    assert [each.expired for each in answers] == [False, True, False]
    assert [len(each.items) for each in answers] == [5, 0, 5]
    assert [len(each.items) for each in process.rank([request(bundle)] * 3)] == [5, 5, 5]  # and no other


class Answers:
    """The answers of the process, group by group."""

    def __init__(self) -> None:
        self.groups: list[dict[Any, Outcome]] = []

    def __call__(self, outcomes: Mapping[Any, Outcome]) -> None:
        self.groups.append(dict(outcomes))

    def wait(self, count: int) -> dict[Any, Outcome]:
        wait_until(lambda: sum(map(len, self.groups)) == count)
        return {key: outcome for group in self.groups for key, outcome in group.items()}


def test_requests_are_taken_while_others_are_in_hand(bundle: Bundle, process: EngineProcess) -> None:
    """The process is suspended meanwhile; answers of one step arrive together, whenever the requests came."""
    answers = Answers()
    pid = freeze(process)
    for limit in (3, 4, 5):
        process.submit({limit: request(bundle, limit)}, on_done=answers)
    process.submit({"never": RankRequest([1] * 1000, 5, 10)}, on_done=answers)
    preparing = threading.Thread(target=process.prepare, args=(bundle.index,))
    preparing.start()
    os.kill(pid, signal.SIGCONT)
    outcomes = answers.wait(4)
    preparing.join(20)
    assert not preparing.is_alive()
    assert isinstance(outcomes.pop("never"), EngineError)
    for limit, ranking in outcomes.items():
        assert isinstance(ranking, Ranking)
        assert ranking.items == process.rank([request(bundle, limit)])[0].items
    assert process.pid == pid


def test_all_that_is_in_hand_is_lost_with_the_process(bundle: Bundle, process: EngineProcess) -> None:
    answers = Answers()
    pid = freeze(process)
    for limit in (3, 4):
        process.submit({limit: request(bundle, limit)}, on_done=answers)
    preparing = threading.Thread(target=process.prepare, args=(bundle.index,))
    preparing.start()
    os.kill(pid, signal.SIGKILL)
    assert [type(each) for each in answers.wait(2).values()] == [EngineLostError] * 2
    preparing.join(20)
    assert not preparing.is_alive()
    process.submit({5: request(bundle, 5)}, on_done=(again := Answers()))
    assert again.wait(1)  # it is being restarted, or is there again
    wait_until(lambda: process.running and process.pid != pid)
    assert process.rank([request(bundle)])[0].items


def test_messages_that_fill_the_pipe_both_ways_do_not_block(bundle: Bundle, process: EngineProcess) -> None:
    """Each request, and all answers together, are larger than the pipe's buffer."""
    answers = Answers()
    for number in range(8):
        many = {(number, k): request(bundle, 60) for k in range(40)}
        process.submit(many | {number: RankRequest([1] * 200_000, 5, 10)}, on_done=answers)
    outcomes = answers.wait(8 * 41)
    assert all(isinstance(each, Ranking) == isinstance(key, tuple) for key, each in outcomes.items())


def test_only_the_batch_that_was_lost_fails(bundle: Bundle) -> None:
    metrics = Metrics()
    fresh = EngineProcess(bundle, options=EngineOptions(threads=1))
    fresh.on_restart = metrics.engine_restarts.inc

    async def main() -> list[Any]:
        scheduler = Scheduler(fresh, metrics, max_batch_size=2, window=0.0, queue_limit=10)
        await scheduler.start([request(bundle)])
        try:
            pid = freeze(fresh)
            tasks = [asyncio.create_task(scheduler.rank(request(bundle, k), 30)) for k in range(1, 7)]
            while scheduler.depth != 4:  # two are in flight in the engine
                await asyncio.sleep(0.005)
            os.kill(pid, signal.SIGKILL)
            while scheduler.running:
                await asyncio.sleep(0.001)
            return await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await scheduler.stop(5)

    lost, answered = (results := asyncio.run(main()))[:2], results[2:]
    assert [type(each) for each in lost] == [EngineUnavailableError] * 2
    assert [len(each.items) for each in answered] == [3, 4, 5, 6]
    assert metrics.engine_restarts._value.get() == 1


def test_index_versions_are_taken_up_and_survive_a_restart(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", codebooks=(4, 5))
    old = Bundle.open(path)
    process = EngineProcess(old, options=EngineOptions(threads=1))
    process.start([request(old)])
    try:
        update_index(old, [Item("new", "Silent Ocean")], ["item-5"], item_vectors)
        new = old.refreshed()
        of_new = request(new, 100, Allowed.of(new.index.trie, new.index.living))
        with pytest.raises(EngineError, match="has not opened"):
            process.rank([of_new])
        process.prepare(new.index)
        of_old = request(old, 100, Allowed.of(old.index.trie))
        for _ in range(2):
            both = process.rank([of_old, of_new, request(new, 100)])
            assert [sorted(each.items) for each in both] == [
                list(range(60)),
                *2 * [[row for row in range(61) if row != 5]],
            ]
            pid = freeze(process)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: process.pid != pid and process.running)  # noqa: B023
    finally:
        process.close()


def test_a_refresh_mends_an_engine_whose_version_is_gone_from_the_disk(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "bundle", codebooks=(4, 5))
    old = Bundle.open(path)
    process = EngineProcess(old, options=EngineOptions(threads=1))
    process.start()
    try:
        update_index(old, [Item("new", "Silent Ocean")], [], item_vectors)
        shutil.rmtree(path / INDEX / old.index.version)
        pid = freeze(process)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not process.running)
        new = old.refreshed()
        process.prepare(new.index)
        wait_until(lambda: process.running)
        assert sorted(process.rank([request(new, 100)])[0].items) == list(range(61))
    finally:
        process.close()


def test_another_bundle_in_the_place_of_the_served_one_is_not_mixed_with_it(tmp_path: Path) -> None:
    served = Bundle.open(make_bundle(tmp_path / "bundle"))
    shutil.rmtree(served.path)
    make_bundle(served.path, items=50)
    process = EngineProcess(served, options=EngineOptions(threads=1))
    with pytest.raises(EngineError, match="another bundle by now"):
        process.start()
    process.close()


def test_a_bundle_that_cannot_be_served_is_refused_by_name(tiny_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bundle, copy)
    process = EngineProcess(Bundle.open(copy), options=EngineOptions(threads=1))
    trie = copy / INDEX / Versions(copy / INDEX).current_name() / "trie" / "code_0.npy"
    trie.write_bytes(trie.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"code_0\.npy is damaged"):
        process.start()
    process.close()


def test_a_device_that_failed_ends_the_process(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """An illegal access makes every later CUDA call fail, so a new process is needed. Failures are reported first."""
    ours, theirs = CONTEXT.Pipe()
    options = EngineOptions(threads=1)
    cancelled = CONTEXT.RawArray(ctypes.c_bool, 4)
    worker = Worker(theirs, bundle.path, bundle.index.version, options, bundle.info.bundle_id, cancelled)

    def fail(feeds: object) -> object:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(worker._engine._backbone, "forward", fail)  # type: ignore[union-attr]
    allowed = Allowed.of(bundle.index.trie, bundle.index.living)
    wired = WireRequest.of(request(bundle), allowed, bundle.index.version, 0, bundle.index.living)
    ours.send_bytes(encode(wire.RankCommand(requests={3: wired})))
    with pytest.raises(EngineError, match="the device failed"):
        worker.serve()
    reply = decode_reply(ours.recv_bytes())
    assert isinstance(reply, wire.Outcomes)
    assert list(reply.failures) == [3]
    ours.close()
