"""Workers of a bulk ranking on the machines of a Ray cluster: one actor for each, which holds the model.

Entries travel to the actors, and tables of answers come back; only this process writes files. The bundle lies on every
machine, under the same path. An actor that dies is replaced, and what it had is ranked again.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from index.bundle.bundle import Bundle
from training.bulk.entry import BulkError, Entry
from training.bulk.workers import Ranked, Slice, Worker, open_worker
from training.errors import UserError

MOST_DEATHS = 3  # of actors with one and the same slice
START_SECONDS = 600.0  # for the cluster to start an actor, when all others are idle


class RankActor:
    """A worker in a process of Ray. Why it could not begin is told by its first answer."""

    def __init__(
        self, path: Path, version: str, sha256: str, settings: dict[str, Any], column: str, batch: int
    ) -> None:
        self._worker: Worker | None = None
        self._refused: Exception | None = None
        try:
            self._worker, bundle = open_worker(path, version, settings, column, batch)
            if bundle.sha256() != sha256:
                raise BulkError(
                    f"{path} is another bundle on the machine {os.uname().nodename}; copy the same one"
                )
        except Exception as error:  # one that leaves here would be hidden in Ray's own
            self._refused = error

    def ready(self) -> int:
        """Return the id of the process, once the model is loaded."""
        return os.getpid()

    def rank(self, entries: Sequence[Entry]) -> Ranked:
        """Return the answers to entries; see `Worker`. Raises why the worker could not begin."""
        if self._refused is not None:
            raise self._refused
        assert self._worker is not None
        return self._worker.rank(entries)


def rank_on_ray(
    address: str,
    count: int,
    bundle: Bundle,
    settings: dict[str, Any],
    column: str,
    batch: int,
    slices: Iterator[Slice],
    progress: Callable[[int], object],
) -> Iterator[tuple[Slice, Ranked]]:
    """Rank slices by `count` actors, in the order in which they are done. Slices are taken as actors need them.

    address: of the cluster, as `ray.init` takes it; `auto` finds the one of this machine.
    settings: of the server, for `read_settings`.
    Raises `UserError` without Ray or a cluster, `BulkError` if the cluster has too little room, or actors die again and
    again, and what an actor raises.
    """
    ray = _ray()
    with _connected(ray, address):
        threads = int(settings["threads"])
        _check_room(ray, count * threads)
        actor_type = ray.remote(RankActor).options(
            num_cpus=threads, num_gpus=int(str(settings["device"]).startswith("cuda"))
        )
        about = (bundle.path.resolve(), bundle.index.version, bundle.sha256(), settings, column, batch)
        crew = _Crew(ray, lambda: actor_type.remote(*about), count)
        try:
            for each, ranked in crew.rank(slices):
                progress(ranked[1].requests)
                yield each, ranked
        finally:
            crew.dismiss()


class _Crew:
    """Actors, and what they work on."""

    def __init__(self, ray: Any, hire: Callable[[], Any], count: int) -> None:
        self._ray = ray
        self._hire = hire
        self._at_work: dict[Any, tuple[Any, Slice | None]] = {}  # without a slice: the actor starts
        self._idle: list[Any] = []
        self._again: deque[Slice] = deque()
        self._deaths: dict[int, int] = {}
        for _ in range(count):
            self._start()

    def rank(self, slices: Iterator[Slice]) -> Iterator[tuple[Slice, Ranked]]:
        more = True
        while True:
            while self._idle and more:
                each = self._again.popleft() if self._again else next(slices, None)
                if each is None:
                    more = False
                else:
                    actor = self._idle.pop()
                    self._at_work[actor.rank.remote(each.entries)] = (actor, each)
            busy = any(each is not None for _, each in self._at_work.values())
            if not busy and not more and not self._again:
                return
            yield from self._next_answer(None if busy else START_SECONDS)
            more = more or bool(self._again)

    def _next_answer(self, patience: float | None) -> Iterator[tuple[Slice, Ranked]]:
        done, _ = self._ray.wait(list(self._at_work), timeout=patience)
        if not done:
            raise BulkError(
                f"the cluster started no worker within {START_SECONDS:g} s; does it have free cores and memory?"
            )
        actor, each = self._at_work.pop(done[0])
        try:
            answer = self._ray.get(done[0])
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what the actor raised
        except self._ray.exceptions.RayActorError as error:
            self._replace(each, error)
            return
        self._idle.append(actor)
        if each is not None:
            yield each, answer

    def _replace(self, each: Slice | None, error: Exception) -> None:
        place = -1 if each is None else each.start
        self._deaths[place] = self._deaths.get(place, 0) + 1
        if self._deaths[place] >= MOST_DEATHS:
            why = str(error).strip().splitlines()[0]
            raise BulkError(
                f"workers died {MOST_DEATHS} times with the same work; did the memory run out? {why}"
            )
        if each is not None:
            self._again.append(each)
        self._start()

    def _start(self) -> None:
        actor = self._hire()
        self._at_work[actor.ready.remote()] = (actor, None)

    def dismiss(self) -> None:
        """End all actors."""
        for actor in [*self._idle, *(actor for actor, _ in self._at_work.values())]:
            self._ray.kill(actor)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray needs Ray: pip install 'gems-sr[ray]'") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        why = str(error).strip().splitlines()[0]
        raise UserError(
            f"there is no Ray cluster at {address!r} ({why}); start one with 'ray start', see docs/bulk.md"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_room(ray: Any, cores: int) -> None:
    there = int(ray.cluster_resources().get("CPU", 0))
    if cores > there:
        raise BulkError(
            f"the workers need {cores} cores, the cluster has {there}; take fewer --workers or --threads"
        )
