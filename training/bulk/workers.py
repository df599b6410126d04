"""Workers of a bulk ranking: this process, or several processes that each hold the model."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers.utils.logging import disable_progress_bar

from index.bundle.bundle import Bundle
from server.offline import OfflineRanker, OfflineReader
from server.settings import read_settings
from training.bulk.entry import BulkError, Entry
from training.bulk.table import Tally, table_of

Ranked = tuple[pa.Table, Tally]


@dataclass(frozen=True, slots=True)
class Slice:
    """Entries that become one part. start: place of the first one."""

    start: int
    entries: Sequence[Entry]

    @property
    def stop(self) -> int:
        return self.start + len(self.entries)


class Worker:
    """Ranks slices, batch by batch. Batches begin at the start of a slice.

    column: name of the keys' column. batch: requests that are ranked together.
    """

    def __init__(self, ranker: OfflineRanker, column: str, batch: int) -> None:
        self._ranker = ranker
        self._column = column
        self._batch = batch

    def rank(self, entries: Sequence[Entry], progress: Callable[[int], object] = lambda _: None) -> Ranked:
        """Return the answers to entries as a table, and their counts.

        progress: called with the number of requests of each batch that is done.
        """
        tables: list[pa.Table] = []
        tally = Tally()
        for start in range(0, len(entries), self._batch):
            batch = entries[start : start + self._batch]
            answers = self._ranker.answers([entry.body() for entry in batch])
            tables.append(table_of(self._column, batch, answers))
            tally += Tally.of(batch, answers)
            progress(len(batch))
        return pa.concat_tables(tables), tally


def rank_here(
    worker: Worker, slices: Iterator[Slice], progress: Callable[[int], object]
) -> Iterator[tuple[Slice, Ranked]]:
    """Rank slices in this process, one after the other."""
    with frozen_objects():
        for each in slices:
            yield each, worker.rank(each.entries, progress)


@contextmanager
def frozen_objects() -> Iterator[None]:
    """Keep garbage collections from all objects that exist: they visit the whole catalogue, and find nothing."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def rank_in_processes(
    count: int,
    bundle: Bundle,
    settings: dict[str, Any],
    column: str,
    batch: int,
    slices: Iterator[Slice],
    progress: Callable[[int], object],
) -> Iterator[tuple[Slice, Ranked]]:
    """Rank slices in `count` processes, in the order in which they are done. Slices are taken as workers need them.

    settings: of the server, for `read_settings`.
    Raises `BulkError` if a worker dies, and what a worker raises.
    """
    version = bundle.index.version
    with ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),  # torch does not survive a fork
        initializer=_begin,
        initargs=(bundle.path.resolve(), version, settings, column, batch),
    ) as pool:
        running: dict[Future[Ranked], Slice] = {}
        try:
            while True:
                for each in islice(slices, count + 1 - len(running)):  # one waits, so that no worker does
                    running[pool.submit(_rank, each.entries)] = each
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    ranked = future.result()
                    progress(ranked[1].requests)
                    yield running.pop(future), ranked
        except BrokenProcessPool as error:
            raise BulkError(
                "a worker ended before its work was done; did the memory run out? Take fewer --workers"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_WORKER: Worker | None = None  # of a worker process
_REFUSED: Exception | None = None  # why there is none


def _begin(path: Path, version: str, settings: dict[str, Any], column: str, batch: int) -> None:
    """Open the bundle in a worker process, which ends with its parent and leaves Ctrl-C to it."""
    global _WORKER, _REFUSED
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _WORKER, _ = open_worker(path, version, settings, column, batch)
    except Exception as error:  # an exception here would only break the pool, without a reason
        _REFUSED = error


def open_worker(
    path: Path, version: str, settings: dict[str, Any], column: str, batch: int
) -> tuple[Worker, Bundle]:
    """Open the bundle at `path` in a process that only ranks. Raises `BulkError` for another version of its index."""
    disable_progress_bar()
    chosen = read_settings(settings)
    reader = OfflineReader(Bundle.open(path), chosen)
    if reader.bundle.index.version != version:
        raise BulkError(f"the index of {path} was changed to {reader.bundle.index.version} meanwhile")
    worker = Worker(OfflineRanker.open(reader, chosen), column, batch)
    gc.freeze()
    return worker, reader.bundle


def _rank(entries: Sequence[Entry]) -> Ranked:
    if _REFUSED is not None:
        raise _REFUSED
    assert _WORKER is not None
    return _WORKER.rank(entries)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
