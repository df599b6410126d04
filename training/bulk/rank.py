"""`gems rank` from a bundle and a source to one Parquet file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from index.bundle.bundle import Bundle
from server.api.errors import InvalidRequestError, ServerError
from server.engine.contract import EngineError
from server.offline import OfflineRanker, OfflineReader
from server.settings import Settings, SettingsError, read_settings
from training.bulk.entry import BulkError, Entry, Source, check, told
from training.bulk.parts import Parts, check_place, is_complete
from training.bulk.plan import Plan, bundle_facts
from training.bulk.ray_workers import rank_on_ray
from training.bulk.table import Tally
from training.bulk.workers import Ranked, Slice, Worker, rank_here, rank_in_processes
from training.data.schema import package_version
from training.errors import UserError
from training.run.device import engine_device
from training.settings import DeviceName

# Settings of the server that answers depend on.
ANSWERING = (
    "engine",
    "device",
    "precision",
    "default_limit",
    "default_beam_width",
    "max_query_chars",
    "fallback",
)
MOST_BATCHES = 4096  # of a part

ReadSource = Callable[[OfflineReader], Source]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a run. seconds: of this run. ranked: requests of this run; the tally counts earlier ones, too."""

    tally: Tally
    ranked: int
    seconds: float
    notes: list[str]


def rank(
    bundle_path: Path,
    out: Path,
    read: ReadSource,
    probe: Entry,
    *,
    fields: dict[str, Any],
    batch: int = 32,
    workers: int = 1,
    threads: int | None = None,
    device: DeviceName = "auto",
    save_seconds: float = 10.0,
    resume: bool = False,
    ray: str | None = None,
    console: Console | None = None,
) -> Outcome:
    """Write the server's answers for all entries of a source to `out`.

    read: reads the source.
    probe: a request with the options of the command line alone, so that wrong ones are told at once.
    fields: those options, for the record.
    batch: requests that are ranked together.
    workers: processes that rank; 1 for this one.
    threads: CPU threads of each; None for an equal share of the cores.
    save_seconds: seconds of work after which it is kept.
    resume: whether a run that was killed goes on.
    ray: address of a Ray cluster whose machines rank; None for this machine. Its workers have one thread by default.
    Raises `UserError`, `BundleError` and `EngineError`; what is done is kept.
    """
    check_place(out, resume)
    given = {
        "threads": threads or (1 if ray else max(1, (os.cpu_count() or 1) // workers)),
        "device": engine_device(device),
    }
    try:
        settings = read_settings(given)
    except SettingsError as error:
        raise BulkError(str(error)) from error
    reader = OfflineReader(Bundle.open(bundle_path), settings)
    if (wrong := check(probe, reader)) is not None:
        raise BulkError(wrong)
    source = read(reader)
    plan = plan_of(reader.bundle, source, settings, fields, batch)
    if is_complete(out, plan) and resume:
        return Outcome(Tally(), 0, 0.0, [f"{out} is complete already"])
    with Parts.opened(out, plan) as parts:
        before = parts.tally.requests
        began = time.perf_counter()
        slices = _slices(source, parts.missing(), batch, workers, save_seconds)
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar:
            row = bar.add_task("ranking", total=len(source), completed=before)
            progress = partial(bar.advance, row)
            try:
                for each, (table, tally) in _ranked(
                    reader, settings, given, source, batch, workers, slices, progress, ray
                ):
                    parts.write(each.start, each.stop, table, tally)
            except (EngineError, ServerError, UserError) as error:
                said = told(error) if isinstance(error, InvalidRequestError) else error
                kept = f"{parts.tally.requests:,} of {len(source):,} requests are done and kept"
                raise BulkError(f"{said}; {kept}: go on with --resume") from error
        seconds = time.perf_counter() - began
        parts.join(out)
        return Outcome(parts.tally, parts.tally.requests - before, seconds, list(source.notes))


def _ranked(
    reader: OfflineReader,
    settings: Settings,
    given: dict[str, Any],
    source: Source,
    batch: int,
    workers: int,
    slices: Iterator[Slice],
    progress: Callable[[int], None],
    ray: str | None,
) -> Iterator[tuple[Slice, Ranked]]:
    """Rank slices here, in processes or on a cluster. Nothing is opened if there is none."""
    first = next(slices, None)
    if first is None:
        return iter(())
    slices = chain([first], slices)
    if ray is not None:
        return rank_on_ray(ray, workers, reader.bundle, given, source.column, batch, slices, progress)
    if workers == 1:
        worker = Worker(OfflineRanker.open(reader, settings), source.column, batch)
        return rank_here(worker, slices, progress)
    return rank_in_processes(workers, reader.bundle, given, source.column, batch, slices, progress)


def plan_of(bundle: Bundle, source: Source, settings: Settings, fields: dict[str, Any], batch: int) -> Plan:
    """Return what a run is recorded and known by."""
    server = {name: getattr(settings, name) for name in ANSWERING}
    return Plan(
        bundle=bundle_facts(bundle),
        source={"column": source.column, "requests": len(source), "sha256": source.sha256},
        settings={**fields, **server, "batch_size": batch, "gems": package_version()},
    )


def _slices(
    source: Source, gaps: list[tuple[int, int]], batch: int, workers: int, save_seconds: float
) -> Iterator[Slice]:
    """Yield what is missing, in slices of whole batches: first one for each worker, then of about `save_seconds`.

    The speed is that at which slices are taken. Where a slice begins changes no answer, because batches always begin at
    multiples of their size.
    """
    began = time.perf_counter()
    taken = 0
    for first, last in gaps:
        start = first
        while start < last:
            spent = time.perf_counter() - began
            done = taken - workers  # batches, about
            size = int(save_seconds * done / spent / workers) if done > 0 else 1
            stop = min(last, start + batch * min(max(1, size), MOST_BATCHES))
            yield Slice(start, source.entries(start, stop))
            taken += -(-(stop - start) // batch)
            start = stop
