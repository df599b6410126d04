"""`python -m bench.renewal --data DIR --out DIR --json F`: yesterday's model, renewed on the newest tenth.

A data set is cut at yesterday:

    yesterday   each person without the last two events (which test and validate) and without the newest tenth of the
                others. A fifth of the people, drawn by a fixed seed, keeps everything: nothing of theirs is new. A
                twentieth of the items, drawn by the same seed, is unknown: all events with them are left out
    today       yesterday and the newest events; of the unknown items only those
    newest      the newest events alone, as if the old log were gone

A model is trained on yesterday, and one from nothing on today. Yesterday's is renewed by several methods on today and
on the newest events, and every bundle is ranked on the test events of today and on those of yesterday. Those of
yesterday are in no training on the newest events, and those of the unchanged people in none at all: what a model loses
on them, it has forgotten. Yesterday's model itself gets the new items by `update_index`, and is ranked with the newest
events in the histories.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Catalogue
from index.sequence.events import Task
from server.engine.torch_backend.engine import TorchEngine
from training.cli.common.command import run_command
from training.cli.common.paths import JsonFile, output_folder
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig
from training.data.dataset import DataSet
from training.data.histories import UserHistory
from training.data.item_vectors import new_item_vectors
from training.data.splits import leave_one_out
from training.errors import UserError
from training.evaluation.bootstrap import mean_interval
from training.evaluation.candidates import Candidates
from training.evaluation.metrics import per_case
from training.evaluation.pools import rank_pools
from training.evaluation.ranking import cases_of, target_ranks
from training.outputs import write_json
from training.pipeline import train
from training.prepare.renewal import Renewal
from training.settings import MOST_THREADS

METRICS = ("hit@10", "ndcg@10")
BEAM_WIDTH = 50
NEWEST = 0.1  # of a person's training events
UNCHANGED = 0.2  # of the people
UNKNOWN = 0.05  # of the items
BASIS = {"method": "gems", "knowledge.source": "histories"}
RENEWALS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "gems": {"method": "gems"},
    "gems, basis": BASIS,
    "gems, basis, rows frozen": BASIS | {"optimiser.other_weights": "frozen"},
    "gems, basis, energy 0.99": BASIS | {"knowledge.energy": 0.99, "knowledge.cap": 0.8},
}


@dataclass(frozen=True)
class Cut:
    """The three data sets.

    unchanged: ids of the people of whom nothing is new.
    unknown: ids of the items that yesterday did not know.
    """

    yesterday: DataSet
    today: DataSet
    newest: DataSet
    unchanged: frozenset[str]
    unknown: frozenset[str]


def main(
    data: Annotated[Path, typer.Option(help="folder of a data set")],
    out: Annotated[Path, typer.Option(help="folder for data sets and runs", callback=output_folder)],
    recipe: Annotated[str, typer.Option(help="recipe")] = "demo",
    rate: Annotated[
        float | None, typer.Option(min=1e-9, max=1, help="learning rate of renewals (default: a fifth)")
    ] = None,
    methods: Annotated[str, typer.Option(help="renewals, separated by semicolons")] = ";".join(RENEWALS),
    logs: Annotated[str, typer.Option(help="'today', 'newest' or both, comma-separated")] = "today,newest",
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Cut, train, renew and measure. Bundles and ranks that are there are used again."""
    quiet_libraries()
    torch.set_num_threads(threads)
    console = Console()
    cut = _cut(DataSet.load(data))
    for name, dataset in (("yesterday", cut.yesterday), ("today", cut.today), ("newest", cut.newest)):
        if not (out / name).exists():
            dataset.save(out / name)
    given: dict[str, Any] = {"threads": threads}
    config = TrainConfig.load(None, given, recipe)
    begin = _trained(out / "yesterday", out / "run-yesterday", config, None, console)
    bundles = {
        "yesterday": _updated(begin, out / "updated", cut.today),
        "from nothing": _trained(out / "today", out / "run-nothing", config, None, console),
    }
    renewal = Renewal.open(begin)
    for log in logs.split(","):
        for method in methods.split(";"):
            overrides = given | RENEWALS[method]
            if overrides.get("knowledge.source") == "histories":
                overrides["knowledge.histories"] = out / "yesterday"
            if rate is not None:
                overrides["optimiser.learning_rate"] = rate
            settings = renewal.settings(None, overrides, recipe)
            name = f"{log}, {method}" + ("" if rate is None else f", rate {rate:g}")
            run = out / f"run-{name.replace(', ', '-').replace(' ', '-')}"
            bundles[name] = _trained(out / log, run, settings, renewal, console)
    ranks = {
        when: {name: _ranks(bundle, dataset, when) for name, bundle in bundles.items()}
        for when, dataset in (("today", cut.today), ("yesterday", cut.yesterday))
    }
    figures = {
        "data": cut.today.info.name, "recipe": recipe, "items": len(cut.today.catalogue), "beam_width": BEAM_WIDTH,
        "unknown_items": len(cut.unknown), "unchanged_people": len(cut.unchanged),
        "events": {name: each.info.counts["interactions"] for name, each in
                   (("yesterday", cut.yesterday), ("today", cut.today), ("newest", cut.newest))},
        "cost": _costs(bundles),
        **{
            f"cases of {when}": {kind: _figures(each, kind, cut, when) for kind in each["yesterday"]}
            for when, each in ranks.items()
        },
    }  # fmt: skip
    console.print_json(json.dumps(figures))
    if json_file is not None:
        write_json(json_file, figures)


def _cut(dataset: DataSet) -> Cut:
    rng = np.random.default_rng(0)
    people, items = len(dataset.users), len(dataset.catalogue)
    unchanged = set(rng.permutation(people)[: int(UNCHANGED * people)].tolist())
    unknown = set(rng.permutation(items)[: int(UNKNOWN * items)].tolist())
    parts: dict[str, list[UserHistory]] = {"yesterday": [], "today": [], "newest": []}
    for place, user in enumerate(dataset.users):
        count = len(user.events)
        whole = place in unchanged or count < 3
        cut = count if whole else count - 2 - math.ceil(NEWEST * (count - 2))
        old = [k for k in range(cut) if user.events[k].item not in unknown]
        new = list(range(cut, count))
        for name, kept in (("yesterday", old), ("today", old + new), ("newest", new)):
            if kept:
                parts[name].append(_part(user, kept))
    rows = sorted({event.item for user in parts["yesterday"] for event in user.events})
    return Cut(
        _named(dataset, "yesterday", _on(parts["yesterday"], rows), rows),
        _named(dataset, "today", parts["today"]),
        _named(dataset, "newest", parts["newest"]),
        frozenset(dataset.users[k].user_id for k in unchanged),
        frozenset(dataset.catalogue[k].item_id for k in set(range(items)) - set(rows)),
    )


def _part(user: UserHistory, kept: Sequence[int]) -> UserHistory:
    return UserHistory(
        user.user_id,
        tuple(user.events[k] for k in kept),
        tuple(user.simulated_queries[k] for k in kept),
        tuple(user.timestamps[k] for k in kept),
    )


def _on(users: Sequence[UserHistory], rows: Sequence[int]) -> list[UserHistory]:
    """Return histories on a catalogue of these rows alone."""
    place = {row: k for k, row in enumerate(rows)}
    return [
        replace(user, events=tuple(replace(event, item=place[event.item]) for event in user.events))
        for user in users
    ]


def _named(
    dataset: DataSet, name: str, users: Sequence[UserHistory], rows: Sequence[int] | None = None
) -> DataSet:
    catalogue = dataset.catalogue
    if rows is not None:
        catalogue = Catalogue([catalogue[row] for row in rows])
    return DataSet(replace(dataset.info, name=f"{dataset.info.name}-{name}"), catalogue, users)


def _trained(data: Path, run: Path, settings: TrainConfig, renewal: Renewal | None, console: Console) -> Path:
    bundle = run / "bundle"
    if not bundle.exists():
        train(data, run, settings, resume=run.exists(), renewal=renewal, console=console)
    if not bundle.exists():
        raise UserError("this method leaves no bundle")
    return bundle


def _updated(bundle: Path, copy: Path, today: DataSet) -> Path:
    """Return a copy of a bundle with the items of today, added without training."""
    if not copy.exists():
        shutil.copytree(bundle, copy)
        opened, items = Bundle.open(copy), list(today.catalogue)
        update_index(opened, items, [], new_item_vectors(opened.info, items))
    return copy


def _ranks(folder: Path, dataset: DataSet, when: str) -> dict[str, NDArray[np.int64]]:
    """Rank the test cases by the pool, as a server does, and by the beam, the model alone; exclude the histories.

    Returns ranks by `<task>, pool` and `<task>, beam`, int64 [cases]. They are kept beside the bundle.
    """
    file = folder.with_name(f"{folder.name}-ranks-{when}.npz")
    if file.exists():
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    bundle = Bundle.open(folder)
    pool = bundle.index.pool
    assert pool is not None
    engine = TorchEngine.open(bundle)
    test = leave_one_out(dataset.on(bundle.index.catalogue)).test
    found = {}
    for task in Task:
        cases = cases_of(task, test)
        by_pool, by_beam = rank_pools(
            engine, bundle.encoder, pool, cases, task, beam_width=BEAM_WIDTH,
            candidates=Candidates(exclude_history=True),
        )  # fmt: skip
        found[f"{task.value}, pool"] = target_ranks(by_pool, cases)
        found[f"{task.value}, beam"] = target_ranks(by_beam, cases)
    with file.open("wb") as stream:
        np.savez_compressed(stream, **cast(Any, found))
    return found


def _costs(bundles: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Return steps and seconds of each training, and their share of the training from nothing."""
    told = {name: Bundle.open(bundle).info.training for name, bundle in bundles.items()}
    whole = told["from nothing"]
    return {
        name: {
            "steps": each["steps"], "seconds": each["seconds"],
            "share_of_steps": round(each["steps"] / whole["steps"], 3),
        }
        for name, each in told.items()
    }  # fmt: skip


def _figures(
    ranks: dict[str, dict[str, NDArray[np.int64]]], kind: str, cut: Cut, when: str
) -> dict[str, Any]:
    """Return for each group of cases the figures of each bundle, and paired differences with 95% intervals.

    kind: task, and what ranks: `search, pool`.
    when: whose cases: `today` or `yesterday`.
    """
    dataset = cut.today if when == "today" else cut.yesterday
    cases = cases_of(Task(kind.partition(",")[0]), leave_one_out(dataset).test)
    ids = dataset.catalogue.item_ids
    unchanged = np.array([case.user_id in cut.unchanged for case in cases])
    new = np.array([ids[case.target] in cut.unknown for case in cases])
    groups = {
        "everyone": np.ones(len(cases), bool), "unchanged people": unchanged, "new items": new,
    }  # fmt: skip
    return {
        name: {"cases": int(inside.sum()), **_compared({k: each[kind][inside] for k, each in ranks.items()})}
        for name, inside in groups.items()
        if inside.any()
    }


def _compared(ranks: dict[str, NDArray[np.int64]]) -> dict[str, Any]:
    """Return the figures of each bundle, and their differences from yesterday's and from the one from nothing."""
    values = {}
    for name, mine in ranks.items():
        of_case = per_case(mine)
        values[name] = np.stack([of_case[metric] for metric in METRICS], axis=1)
    found: dict[str, Any] = {}
    for name, each in values.items():
        entry: dict[str, Any] = dict(zip(METRICS, each.mean(0).round(4).tolist(), strict=True))
        without_basis = re.sub(", basis.*?(?=, rate|$)", "", name)
        for other in ("yesterday", "from nothing", without_basis):
            if other != name and other in values:
                apart = (each - values[other])[:, METRICS.index("ndcg@10")]
                entry[f"ndcg@10 minus {other}"] = [
                    round(float(x), 4) for x in (apart.mean(), *mean_interval(apart))
                ]
        found[name] = entry
    return found


if __name__ == "__main__":
    run_command(main, "bench.renewal")
