"""`python -m bench.cold_items --data DIR --out DIR --json F`: items that were added after training, and typed words.

A share of the catalogue, drawn by a fixed seed, is left out of training: the items and every interaction with them.
After training `update_index` adds them. Reported are:

- the last interaction of each person, as search and as recommendation, by the pool and by the beam alone. Targets that
  were trained on (warm) and new ones (cold) are ranked among the whole catalogue; warm ones also before the update;
- titles in lower case and item ids as queries without a history, of trained and of added items;
- the suggested cut-off: how many targets of real searches it loses, and what it leaves of answers to nonsense.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Catalogue
from index.pool.pool import Fused
from index.pool.pool_index import PoolIndex
from index.sequence.events import Task
from index.words import words
from server.engine.torch_backend.engine import TorchEngine
from training.cli.common.command import run_command
from training.cli.common.numbers import BeamWidth, finite
from training.cli.common.paths import JsonFile, output_folder
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.item_vectors import new_item_vectors
from training.data.splits import Case, leave_one_out
from training.errors import UserError
from training.evaluation.candidates import Candidates
from training.evaluation.metrics import per_case
from training.evaluation.pools import rank_pools
from training.evaluation.ranking import cases_of, draw_cases, target_ranks
from training.outputs import write_json
from training.pipeline import train
from training.settings import MOST, MOST_THREADS

METRICS = ("hit@10", "ndcg@10", "hit@50")
SHOWN = 10  # items of an answer
NONSENSE = 200
SYLLABLES = [
    "ba",
    "cro",
    "du",
    "fli",
    "gom",
    "hez",
    "jix",
    "kla",
    "mup",
    "nyr",
    "pho",
    "quz",
    "rav",
    "sib",
    "tox",
    "wug",
]


class Measured:
    """A bundle, its pool and its engine, with the rows of a data set's items in its catalogue."""

    def __init__(self, bundle: Bundle, dataset: DataSet, beam_width: int) -> None:
        if bundle.index.pool is None or bundle.index.pool.fusion is None:
            raise UserError(f"{bundle.path} has no weights to rank a pool by")
        self.bundle = bundle
        self.pool: PoolIndex = bundle.index.pool
        self.engine = TorchEngine.open(bundle)
        self.beam_width = beam_width
        self.row = [bundle.index.catalogue.row(item.item_id) for item in dataset.catalogue]

    def cases(self, cases: Sequence[Case]) -> list[Case]:
        """Return the cases with rows of this bundle. Events with items that it does not hold are left out."""
        found = []
        for case in cases:
            target = self.row[case.target]
            assert target is not None
            rows = [(event, self.row[event.item]) for event in case.history]
            history = tuple(replace(event, item=row) for event, row in rows if row is not None)
            found.append(replace(case, history=history, target=target))
        return found

    def ranked(self, cases: Sequence[Case], task: Task) -> tuple[list[Fused], dict[str, Any]]:
        """Return the rankings by the pool, and the metrics of pool and beam."""
        if not cases:
            return [], {"cases": 0}
        mine = self.cases(cases)
        fused, beams = rank_pools(
            self.engine, self.bundle.encoder, self.pool, mine, task, beam_width=self.beam_width,
            candidates=Candidates(exclude_history=True),
        )  # fmt: skip
        figures: dict[str, Any] = {"cases": len(cases)}
        for name, rankings in (("pool", fused), ("beam", beams)):
            values = per_case(target_ranks(rankings, mine))
            figures[name] = {metric: round(float(values[metric].mean()), 4) for metric in METRICS}
        return fused, figures


def main(
    data: Annotated[Path, typer.Option(help="folder of a data set")],
    out: Annotated[
        Path, typer.Option(help="folder for the reduced data set and the run", callback=output_folder)
    ],
    recipe: Annotated[str, typer.Option(help="recipe")] = "demo",
    scheme: Annotated[str | None, typer.Option(help="of identifiers, in place of the recipe's")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.001, max=MOST, callback=finite, help="length of training")
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.01, max=0.5, help="of the items that are left out of training")
    ] = 0.15,
    cases: Annotated[int, typer.Option(min=1, max=MOST, help="cases of each kind at most")] = 1000,
    beam_width: BeamWidth = 50,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads")] = 2,
    json_file: JsonFile = None,
) -> None:
    """Train without some items, add them, and measure."""
    quiet_libraries()
    torch.set_num_threads(threads)
    console = Console()
    dataset = DataSet.load(data)
    order = np.random.default_rng(0).permutation(len(dataset.catalogue))
    cold = set(order[: int(share * len(order))].tolist())
    if not (out / "data").exists():
        _without(dataset, cold).save(out / "data")
    given: dict[str, Any] = {"threads": threads}
    given |= {
        name: value
        for name, value in (("optimiser.minutes", minutes), ("identifiers.scheme", scheme))
        if value
    }
    settings = TrainConfig.load(None, given, recipe)
    published = train(out / "data", out / "run", settings, resume=(out / "run").exists(), console=console)
    if published is None:
        raise UserError("this method leaves no bundle")
    held = _held(dataset, cold)
    figures: dict[str, Any] = {
        "scheme": settings.identifiers.scheme, "items": len(dataset.catalogue), "cold_items": len(cold),
        "beam_width": beam_width, "instructions": torch.backends.cpu.get_cpu_capability(),
        "search": {}, "recommendation": {},
    }  # fmt: skip
    kinds = {
        "warm": [case for case in held if case.target not in cold],
        "cold": [case for case in held if case.target in cold],
    }
    bundle = Bundle.open(published)
    if len(bundle.index.catalogue) < len(dataset.catalogue):
        before = Measured(bundle, dataset, beam_width)
        for task in Task:
            chosen = draw_cases(cases_of(task, kinds["warm"]), cases, 0)
            figures[task.value]["warm before"] = before.ranked(chosen, task)[1]
        items = [dataset.catalogue[row] for row in sorted(cold)]
        update_index(bundle, items, [], new_item_vectors(bundle.info, items))
        bundle = bundle.refreshed()
    after = Measured(bundle, dataset, beam_width)
    for task in Task:
        for kind, some in kinds.items():
            chosen = draw_cases(cases_of(task, some), cases, 0)
            fused, figures[task.value][kind] = after.ranked(chosen, task)
            if task is Task.SEARCH and kind == "warm":
                figures["cut-off"] = _cut_off(after, fused, after.cases(chosen))
    figures["typed"] = _typed(after, dataset, cold, cases)
    console.print_json(json.dumps(figures))
    if json_file is not None:
        write_json(json_file, figures)


def _without(dataset: DataSet, cold: set[int]) -> DataSet:
    """Return the data set without some items and their interactions."""
    rows = {old: new for new, old in enumerate(k for k in range(len(dataset.catalogue)) if k not in cold)}
    users = []
    for user in dataset.users:
        kept = [k for k, event in enumerate(user.events) if event.item not in cold]
        if kept:
            users.append(
                UserHistory(
                    user.user_id,
                    tuple(replace(user.events[k], item=rows[user.events[k].item]) for k in kept),
                    tuple(user.simulated_queries[k] for k in kept),
                    tuple(user.timestamps[k] for k in kept),
                )
            )
    items = [item for row, item in enumerate(dataset.catalogue) if row not in cold]
    return DataSet(replace(dataset.info, name=f"{dataset.info.name}-warm"), Catalogue(items), users)


def _held(dataset: DataSet, cold: set[int]) -> list[Case]:
    """Return the test cases of people with at least three warm events: training used all events of the others."""
    warm_events = {user.user_id: sum(e.item not in cold for e in user.events) for user in dataset.users}
    return [case for case in leave_one_out(dataset).test if warm_events[case.user_id] >= 3]


def _typed(measured: Measured, dataset: DataSet, cold: set[int], most: int) -> dict[str, Any]:
    """Return how often titles and ids as queries find their items, by kind of query and of item.

    Titles that several items share (the same words) are left out.
    """
    catalogue = dataset.catalogue
    shared = Counter(tuple(words(item.title)) for item in catalogue)
    queries = {
        "title": [item.title.lower() for item in catalogue],
        "item_id": [item.item_id for item in catalogue],
    }
    figures: dict[str, Any] = {}
    for name, typed in queries.items():
        for kind in ("trained", "added"):
            rows = [
                row
                for row in range(len(catalogue))
                if (row in cold) == (kind == "added") and shared[tuple(words(catalogue[row].title))] == 1
            ]
            cases = draw_cases([Case("", (), row, typed[row]) for row in rows], most, 0)
            fused, _ = measured.ranked(cases, Task.SEARCH)
            ranks = target_ranks(fused, measured.cases(cases))
            figures.setdefault(name, {})[kind] = {
                "cases": len(cases),
                "first": round(float((ranks == 1).mean()), 4),
                "first three": round(float(((ranks > 0) & (ranks <= 3)).mean()), 4),
            }
    return figures


def _cut_off(measured: Measured, fused: Sequence[Fused], cases: Sequence[Case]) -> dict[str, Any]:
    """Return what the suggested `min_relevance` of searches does to real queries and to nonsense."""
    fusion = measured.pool.fusion
    assert fusion is not None
    least = fusion.tasks[Task.SEARCH].cutoff
    lost = 0
    for ranking, case in zip(fused, cases, strict=True):
        if case.target in ranking.items[:SHOWN]:
            lost += ranking.relevance[ranking.items.index(case.target)] < least
    rng = np.random.default_rng(0)
    queries = [Case("", (), 0, _nonsense(rng)) for _ in range(NONSENSE)]
    rankings, _ = rank_pools(
        measured.engine,
        measured.bundle.encoder,
        measured.pool,
        queries,
        Task.SEARCH,
        beam_width=measured.beam_width,
    )
    left = [sum(share >= least for share in ranking.relevance[:SHOWN]) for ranking in rankings]
    return {
        "min_relevance": least,
        "searches that lose their target": round(lost / max(1, len(cases)), 4),
        "nonsense queries": NONSENSE,
        "nonsense, empty answers": round(float(np.mean([n == 0 for n in left])), 4),
        "nonsense, short or empty answers": round(float(np.mean([n < SHOWN for n in left])), 4),
    }


def _nonsense(rng: np.random.Generator) -> str:
    """Return one to three words that mean nothing: half of them of random letters, half of syllables."""

    def word() -> str:
        if rng.random() < 0.5:
            return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(4, 10)))
        return "".join(rng.choice(SYLLABLES, rng.integers(2, 5)))

    return " ".join(word() for _ in range(rng.integers(1, 4)))


if __name__ == "__main__":
    run_command(main, "bench.cold_items")
