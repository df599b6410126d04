"""One run of a sweep: train, measure with the serving engine and on general text, save the figures."""

from __future__ import annotations

import json
import shutil
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from index.files import atomic_write
from index.records import Record, parse_json
from index.sequence.events import Task
from training.config import TrainConfig, modern
from training.data.dataset import DataSet
from training.data.general_text import held_out_articles, token_windows
from training.evaluation.candidates import Candidates, excludes_history
from training.evaluation.metrics import per_case
from training.evaluation.ranking import cases_of, draw_cases, rank_cases, target_ranks
from training.fit import Trained, fit
from training.loop.trainer import DivergedError
from training.prepare.preparation import open_prepared, shape_key
from training.preservation.general import general_figures
from training.preservation.preservation import compare_general
from training.run.locks import claim
from training.run.run_folder import fingerprint
from training.settings import flat
from training.sweep.spec import SweepError, SweepSpec

WINDOW = 256
METRICS = ("hit@10", "ndcg@10")


def run_variant(
    spec: SweepSpec, variant: str, seed: int, data: Path, out: Path, console: Console
) -> dict[str, Any] | None:
    """Train and measure a run, or read its result if it exists. Returns None if another process works on it.

    OUT/<variant>/seed-<n>/ keeps settings, metrics and `result.json`; weights are deleted.

    data: folder of the data set.
    Raises `SweepError` if the existing result was made with other settings, measures or data.
    """
    folder = out / variant / f"seed-{seed}"
    found = folder / "result.json"
    config = spec.config(variant, seed)
    dataset = fingerprint(DataSet.load(data))
    settings = config.model_dump(mode="json")
    about = {"settings": settings, "measured": spec.measures(), "data": dataset}
    if found.exists():
        before = _result(found)
        # Earlier versions recorded settings without groups.
        then, now = (
            {name: value for name, value in each.items() if name != "device"}
            for each in (modern(before["settings"]), flat(settings))
        )
        same = then == now  # on whatever device
        if not same or any(before.get(name) != about[name] for name in ("measured", "data")):
            raise SweepError(f"{found} was made with other settings, measures or data; choose another --out")
        return before
    shared = out / "prepared" / shape_key(config, dataset)
    with claim(folder.with_suffix(".lock")) as mine:
        if not mine:
            return None
        console.rule(f"{variant}, seed {seed}")
        result: dict[str, Any] = {"variant": variant, "seed": seed} | about
        try:
            trained = fit(data, folder, config, resume=True, console=console, preparations=shared)
            assert trained is not None  # a sweep publishes no bundles
            result |= _measure(spec, config, trained, folder, shared, console)
        except DivergedError as error:  # this is a result, too: the learning rate is too high
            console.print(f"{variant}, seed {seed}: {error}", markup=False)
            result["failed"] = str(error)
        with atomic_write(found, single_writer=True) as draft:
            draft.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
        for spent in ("checkpoints", "best", "codes/prepared"):
            shutil.rmtree(folder / spent, ignore_errors=True)
        return result


def _result(path: Path) -> dict[str, Any]:
    """Read the figures of a finished run. Raises `SweepError`."""
    try:
        record = Record.read(path)
        record.mapping("settings")
    except (OSError, ValueError) as error:
        raise SweepError(f"{error}; delete {path} to make that run again") from error
    return record.fields


def _measure(
    spec: SweepSpec, config: TrainConfig, trained: Trained, folder: Path, shared: Path, console: Console
) -> dict[str, Any]:
    encoder = trained.prepared.encoder(config)
    chosen = draw_cases(trained.split.test, spec.cases, seed=0)
    candidates = Candidates(excludes_history(spec.exclude_history, trained.split.validation))
    result: dict[str, Any] = {"steps": trained.record["steps"], "validation": trained.record["validation"]}
    with console.status("ranking the test cases"):
        for task in Task:
            cases = cases_of(task, chosen)
            rankings = rank_cases(
                trained.engine, encoder, cases, task, beam_width=spec.beam_width, limit=10,
                candidates=candidates,
            )  # fmt: skip
            values = per_case(target_ranks(rankings, cases))
            result[task.value] = {name: float(values[name].mean()) for name in METRICS}
    if spec.text_tokens:
        with console.status("reading general text"):
            first = trained.prepared.vocabulary.first_added
            windows = token_windows(trained.prepared.tokenizer, held_out_articles(), WINDOW, spec.text_tokens)
            before = general_figures(open_prepared(shared).model, windows, first)
            result["general"] = compare_general(
                before, general_figures(trained.prepared.model, windows, first)
            )
    return result | _log_figures(folder)


def _log_figures(folder: Path) -> dict[str, Any]:
    """Return cost, conflict and validation curve of a run, from its `metrics.jsonl`."""
    lines = [parse_json(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [line for line in lines if "seconds" in line]
    apart = [b["seconds"] - a["seconds"] for a, b in pairwise(steps)]
    conflicts = [line["conflict"] for line in lines if line.get("conflict")]
    known = [value for value in (conflicts[-1] if conflicts else {}).values() if value is not None]
    seconds = {line["step"]: line["seconds"] for line in steps}
    return {
        "step_seconds": statistics.median(apart) if apart else None,
        "cost": next((line["cost"] for line in lines if "cost" in line), {}),
        "conflict": statistics.fmean(known) if known else None,
        "curve": [
            {"step": line["step"], "seconds": seconds.get(line["step"]), **line["validation"]}
            for line in lines
            if "validation" in line
        ],
    }
