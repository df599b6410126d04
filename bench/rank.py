"""`python -m bench.rank BUNDLE --data DIR --json F`: `gems rank` against the engine alone, on the same people.

The engine ranks full batches of requests that were read beforehand; `gems rank` reads them, ranks the same batches,
sums up the signals of the pool, and writes its parts. They run in turn, and medians of their rates are compared: one
process with one thread, then several such workers. The engine has one thread, or `--threads`. The start of the workers,
some seconds each time, is not counted. Last, what each stage of a request takes of the processor, in milliseconds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from index.bundle.bundle import Bundle
from server.offline import OfflineRanker, OfflineReader
from server.ranking.answer import answer_of
from server.ranking.ranked import Question
from server.settings import read_settings
from training.bulk.entry import Source
from training.bulk.parts import Parts
from training.bulk.people import read_people
from training.bulk.rank import plan_of
from training.bulk.table import table_of
from training.bulk.workers import Ranked, Slice, Worker, frozen_objects, rank_here, rank_in_processes
from training.cli.common.command import run_command
from training.cli.common.paths import BundlePath, JsonFile
from training.cli.common.quiet import quiet_libraries
from training.outputs import write_json
from training.settings import MOST, MOST_THREADS

PART = 16  # batches


def slices(source: Source, people: int, batch: int) -> Iterator[Slice]:
    """Yield the people in parts."""
    for start in range(0, people, PART * batch):
        yield Slice(start, source.entries(start, min(people, start + PART * batch)))


def rate_of(results: Iterator[tuple[Slice, Ranked]], parts: Parts, skipped: int) -> float:
    """Write parts; return requests a second, without the first parts and the time until they are there."""
    began, counted = time.perf_counter(), 0
    for number, (each, (table, tally)) in enumerate(results, start=1):
        parts.write(each.start, each.stop, table, tally)
        if number == skipped:
            began, counted = time.perf_counter(), 0
        else:
            counted += len(each.entries)
    return counted / (time.perf_counter() - began)


def stages_of(
    source: Source, people: int, batch: int, reader: OfflineReader, ranker: OfflineRanker
) -> dict[str, float]:
    """Return the milliseconds of the processor that each stage of `gems rank` takes for a request, up to its table."""
    spent: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        spent[name] += time.process_time() - began

    for start in range(0, people, batch):
        with stage("read"):
            entries = source.entries(start, min(people, start + batch))
            parsed = [reader.read(each.body()) for each in entries]
        with stage("gather"):
            questions = [Question.of(each) for each in parsed]
        with stage("engine"):
            rankings = ranker.engine.rank([each.request for each in questions])
        with stage("fuse"):
            ranked = [each.ranked(ranking) for each, ranking in zip(questions, rankings, strict=True)]
        with stage("answer"):
            answers = [answer_of(*each, None, "", 0.0) for each in zip(parsed, ranked, strict=True)]
        with stage("table"):
            table_of(source.column, entries, answers)
    return {name: 1000 * seconds / people for name, seconds in spent.items()}


def measure(
    path: Path, data: Path, people: int, batch: int, workers: int, threads: int, rounds: int
) -> dict[str, Any]:
    """Return the figures of a bundle."""
    settings = read_settings({"threads": 1})
    reader = OfflineReader(Bundle.open(path), settings)
    ranker = OfflineRanker.open(reader, settings)
    source = read_people(data, None, {}, reader)
    people = min(people, len(source))
    requests = [Question.of(reader.read(each.body())).request for each in source.entries(0, people)]
    plan = plan_of(reader.bundle, source, settings, {}, batch)

    def engine() -> float:
        torch.set_num_threads(threads)
        began = time.perf_counter()
        for start in range(0, people, batch):
            ranker.engine.rank(requests[start : start + batch])
        rate = people / (time.perf_counter() - began)
        torch.set_num_threads(1)
        return rate

    def bulk(results: Iterator[tuple[Slice, Ranked]], skipped: int) -> float:
        with (
            tempfile.TemporaryDirectory() as folder,
            Parts.opened(Path(folder) / "out.parquet", plan) as parts,
        ):
            return rate_of(results, parts, skipped)

    def one() -> float:
        worker = Worker(ranker, source.column, batch)
        return bulk(rank_here(worker, slices(source, people, batch), lambda _: None), 0)

    def many() -> float:
        parts = slices(source, people, batch)
        done = rank_in_processes(
            workers, reader.bundle, {"threads": 1}, source.column, batch, parts, lambda _: None
        )
        return bulk(done, workers)

    runs: dict[str, Callable[[], float]] = {"engine": engine, "rank": one}
    if workers > 1:
        runs["rank_with_workers"] = many
    engine()  # warm
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(run())
    with frozen_objects():
        stages = stages_of(source, people, batch, reader, ranker)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    ratios = {f"{name}_to_engine": medians[name] / medians["engine"] for name in medians if name != "engine"}
    return {
        "requests_per_second": medians,
        **ratios,
        "rounds": rates,
        "stages_ms": stages,
        "people": people,
        "batch_size": batch,
        "workers": workers,
        "engine_threads": threads,
        "bundle": reader.bundle.info.bundle_id,
    }


def main(
    bundle: BundlePath,
    data: Annotated[Path, typer.Option(help="folder of a data set, whose people are ranked for")],
    json_file: JsonFile = None,
    people: Annotated[int, typer.Option(min=1, max=MOST, help="at most this many of them")] = 4000,
    batch_size: Annotated[int, typer.Option(min=1, max=MOST, help="requests that are ranked together")] = 32,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="of `gems rank`, one thread each")] = 2,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="of the engine alone")] = 1,
    rounds: Annotated[int, typer.Option(min=1, max=MOST, help="turns of each")] = 3,
) -> None:
    """Measure people a second of `gems rank` and of the engine alone."""
    quiet_libraries()
    figures = measure(bundle, data, people, batch_size, workers, threads, rounds)
    console = Console()
    for name, rate in figures["requests_per_second"].items():
        console.print(f"{name:24}{rate:10.1f} a second", highlight=False)
    for name, value in figures.items():
        if name.endswith("_to_engine"):
            console.print(f"{name:24}{value:10.2f}", highlight=False)
    for stage, milliseconds in figures["stages_ms"].items():
        console.print(f"{stage:24}{milliseconds:10.3f} ms of the processor", highlight=False)
    if json_file:
        write_json(json_file, figures)


if __name__ == "__main__":
    run_command(main, "bench.rank")
