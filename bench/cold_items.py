"""`python -m bench.cold_items --data DIR --out DIR --json F`: rankings of items that were added after training.

A tenth of the catalogue, drawn by a fixed seed, is left out of training: the items and every interaction with them.
After training `update_index` adds them, and the last interaction of each user is ranked as search and as
recommendation. Targets that were trained on (warm) and new targets (cold) are reported separately. Cold targets are
ranked among the whole catalogue and among the cold items alone. Among N cold items a random ranking has a Hit@10 of 10
/ N.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from index.bundle.bundle import Bundle
from index.bundle.update import update_index
from index.catalogue import Catalogue
from index.sequence.events import Task
from index.trie.allowed import Allowed, SlotSet
from server.engine.contract import RankRequest
from server.engine.torch_backend.engine import TorchEngine
from training.cli.common.command import run_command
from training.cli.common.numbers import BeamWidth, finite
from training.cli.common.paths import JsonFile, output_folder
from training.cli.common.quiet import quiet_libraries
from training.config import TrainConfig
from training.data.dataset import DataSet, UserHistory
from training.data.item_vectors import new_item_vectors
from training.data.splits import Case, leave_one_out
from training.errors import UserError
from training.evaluation.metrics import per_case
from training.evaluation.ranking import cases_of, draw_cases, target_ranks
from training.outputs import write_json
from training.pipeline import train
from training.settings import MOST

SHARE = 0.1
METRICS = ("hit@10", "ndcg@10", "hit@50")


def main(
    data: Annotated[Path, typer.Option(help="folder of a data set")],
    out: Annotated[
        Path, typer.Option(help="folder for the reduced data set and the run", callback=output_folder)
    ],
    config: Annotated[str, typer.Option(help="recipe or YAML file")] = "small",
    scheme: Annotated[str | None, typer.Option(help="semantic or text, in place of the recipe's")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.001, max=MOST, callback=finite, help="length of training")
    ] = None,
    cases: Annotated[int, typer.Option(min=1, max=MOST, help="test cases of each kind at most")] = 1000,
    beam_width: BeamWidth = 100,
    json_file: JsonFile = None,
) -> None:
    quiet_libraries()
    console = Console()
    dataset = DataSet.load(data)
    order = np.random.default_rng(0).permutation(len(dataset.catalogue))
    cold = set(order[: int(SHARE * len(order))].tolist())
    if not (out / "data").exists():
        _without(dataset, cold).save(out / "data")
    given: dict[str, Any] = {
        name: value
        for name, value in (("optimiser.minutes", minutes), ("identifiers.scheme", scheme))
        if value
    }
    settings = TrainConfig.load(config, given)
    used = settings.identifiers.scheme
    if used == "atomic":
        raise UserError("atomic identifiers cannot name later items; use semantic or text ones")
    published = train(out / "data", out / "run", settings, resume=(out / "run").exists(), console=console)
    if published is None:
        raise UserError("this method leaves no bundle")
    bundle = Bundle.open(published)
    if len(bundle.index.catalogue) < len(dataset.catalogue):
        items = [dataset.catalogue[row] for row in sorted(cold)]
        update_index(bundle, items, [], new_item_vectors(bundle.info, items))
        bundle = bundle.refreshed()
    figures: dict[str, Any] = {
        "scheme": used, "items": len(dataset.catalogue), "cold_items": len(cold), "beam_width": beam_width,
    }  # fmt: skip
    figures |= _measure(dataset, bundle, cold, cases, beam_width)
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


def _measure(dataset: DataSet, bundle: Bundle, cold: set[int], most: int, beam_width: int) -> dict[str, Any]:
    """Return metrics by task and kind of target.

    Users with fewer than three warm events are left out, because training used all of their events.
    """
    row_of = [bundle.index.catalogue.row(item.item_id) for item in dataset.catalogue]
    rows = [row for row in row_of if row is not None]
    warm_events = {user.user_id: sum(e.item not in cold for e in user.events) for user in dataset.users}
    held = [case for case in leave_one_out(dataset).test if warm_events[case.user_id] >= 3]
    engine = TorchEngine.open(bundle)
    trie = bundle.index.trie
    among_cold = SlotSet.of_members(trie.slot_of_item[[rows[k] for k in sorted(cold)]], trie.items)
    figures: dict[str, Any] = {}
    for task in Task:
        asked = cases_of(task, held)
        kinds = {
            "warm": ([case for case in asked if case.target not in cold], None),
            "cold": ([case for case in asked if case.target in cold], None),
            "cold among cold": ([case for case in asked if case.target in cold], among_cold),
        }
        figures[task.value] = {
            kind: _ranked(engine, bundle, draw_cases(chosen, most, 0), task, rows, slots, beam_width)
            for kind, (chosen, slots) in kinds.items()
        }
    return figures


def _ranked(
    engine: TorchEngine,
    bundle: Bundle,
    cases: Sequence[Case],
    task: Task,
    rows: Sequence[int],
    slots: SlotSet | None,
    beam_width: int,
) -> dict[str, float]:
    requests, targets = [], []
    for case in cases:
        events = [replace(event, item=rows[event.item]) for event in case.history]
        prompt = bundle.encoder.prompt(events, case.query if task is Task.SEARCH else None)
        seen = [event.item for event in events]
        allowed = Allowed.of(bundle.index.trie, slots, seen)
        requests.append(RankRequest(prompt.ids, 50, beam_width, allowed))
        targets.append(replace(case, target=rows[case.target]))
    if not cases:
        return {"cases": 0}
    values = per_case(target_ranks(engine.rank(requests), targets))
    return {"cases": len(cases)} | {name: float(values[name].mean()) for name in METRICS}


if __name__ == "__main__":
    run_command(main, "bench.cold_items")
