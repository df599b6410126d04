"""One training of one system, and its measurement: what a child process of `gems reproduce` does.

A job lies in a folder of its own, `job.json`, beside the run folder `run`. Its end is `result.json`, or `failed.json`
with the reason. The ranks of a measured job are `full.npz` and `sampled.npz`, as `gems compare` reads them.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.progress import Progress

from index.files import atomic_write
from index.sequence.events import Task
from training.baselines.run import LANGUAGE_FILE, train_baseline
from training.data.dataset import DataSet
from training.data.splits import LEAVE_ONE_OUT, leave_one_out
from training.errors import EvaluationError
from training.evaluation.candidates import Candidates
from training.evaluation.case_ranks import CaseRanks, TaskRanks
from training.evaluation.floors import FLOORS, Scores, floor_scores
from training.evaluation.metrics import per_case
from training.evaluation.ranking import cases_of, draw_cases
from training.evaluation.scoring import ScoreCases
from training.fit import fit
from training.outputs import write_json
from training.prepare.preparation import shape_key
from training.report.run_log import RunLog
from training.reproduce.rankers import EngineRanker, Ranker, ScoreRanker
from training.reproduce.systems import RunSize, System
from training.run.run_folder import fingerprint
from training.settings import Clock, DeviceName

JOB, RESULT, FAILED = "job.json", "result.json", "failed.json"
FULL, SAMPLED = "full.npz", "sampled.npz"
TUNING_METRIC = "ndcg@10"


class Protocol(BaseModel):
    """The measurement that is the same for every system.

    cases: test cases, drawn once; None: all.
    validation_cases: cases on which settings are chosen, drawn once.
    negatives: items that a target is ranked among in the sampled ranking.
    seed: seed of the drawn cases and negatives.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cases: int | None = None
    validation_cases: int = 1000
    beam_width: int = 50
    negatives: int = 99
    exclude_history: bool = False
    seed: int = 0

    @property
    def sampled(self) -> Candidates:
        return Candidates(self.exclude_history, self.negatives, self.seed)


class Job(BaseModel):
    """A training of a system with one point of its grid and one seed.

    part: 'test' for a job whose ranks are measured, 'validation' for one that tries settings.
    data, shared: folders of the data set, and of what several jobs need.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    system: System
    point: dict[str, Any]
    seed: int
    minutes: float
    clock: Clock
    threads: int
    device: DeviceName
    part: str
    protocol: Protocol
    data: Path
    shared: Path

    @property
    def size(self) -> RunSize:
        return RunSize(self.minutes, self.clock, self.threads, self.device)


def run_job(job: Job, folder: Path, console: Console) -> dict[str, Any]:
    """Train and measure, and write `result.json` into the folder. A training that was stopped goes on.

    Raises `UserError` that says why the system cannot be trained or measured.
    """
    dataset = DataSet.load(job.data)
    run = folder / "run"
    if not (run / "environment.json").exists():  # killed before it was a run
        shutil.rmtree(run, ignore_errors=True)
    ranker = _trained(job, dataset, run, console)
    begin = time.perf_counter()
    split = leave_one_out(dataset)
    protocol = job.protocol
    held, most = (
        (split.test, protocol.cases) if job.part == "test" else (split.validation, protocol.validation_cases)
    )
    chosen = draw_cases(held, most, protocol.seed)
    full: dict[Task, TaskRanks] = {}
    sampled: dict[Task, TaskRanks] = {}
    with Progress(console=console, transient=True) as bar:
        for task in ranker.tasks:
            if not (cases := cases_of(task, chosen)):
                continue
            row = bar.add_task(f"ranking for {task.value}", total=len(cases))
            whole, few = ranker.ranks(task, cases, protocol.sampled, partial(_show, bar, row))
            full[task], sampled[task] = TaskRanks.of(cases, whole), TaskRanks.of(cases, few)
    if not full:
        raise EvaluationError(f"no held-out event has what {job.name} answers: the log has no queries")
    cost = dict(ranker.cost) | {"ranking_seconds": time.perf_counter() - begin}
    data = fingerprint(dataset)
    if job.part == "test":
        for file, ranks, rule in (
            (FULL, full, Candidates(protocol.exclude_history)), (SAMPLED, sampled, protocol.sampled)
        ):  # fmt: skip
            about = {"split": job.part, "users": LEAVE_ONE_OUT} | rule.protocol
            CaseRanks(job.name, job.seed, data, about, ranks, cost).save(folder / file)
    result = {"job": about_of(job), "data": data, "score": _score(full), "cost": cost}
    write_json(folder / RESULT, result)
    for spent in ("checkpoints", "best", "checkpoint.pt"):
        path = run / spent
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
    return result


def about_of(job: Job) -> dict[str, Any]:
    """Return what two jobs must agree in to have the same result: of the grid, only the point."""
    return job.model_dump(
        mode="json", exclude={"data": True, "shared": True, "device": True, "system": {"grid"}}
    )


def _score(ranks: dict[Task, TaskRanks]) -> float:
    """Return the figure by which settings are chosen: the mean NDCG@10 of the full ranking over the tasks."""
    return float(np.mean([per_case(found.ranks)[TUNING_METRIC].mean() for found in ranks.values()]))


def _trained(job: Job, dataset: DataSet, run: Path, console: Console) -> Ranker:
    match job.system.kind:
        case "floor":
            return _floor(job, dataset)
        case "baseline":
            return _baseline(job, dataset, run, console)
        case "recipe":
            return _recipe(job, dataset, run, console)


def _floor(job: Job, dataset: DataSet) -> ScoreRanker:
    split = leave_one_out(dataset)
    found = {task: floor_scores(task, dataset.catalogue, split.train) for task in FLOORS[job.system.of]}
    return ScoreRanker({task: _stacked(scores[job.system.of]) for task, scores in found.items()})


def _stacked(scores: Scores) -> ScoreCases:
    return lambda cases: np.stack([scores(case) for case in cases])


def _baseline(job: Job, dataset: DataSet, run: Path, console: Console) -> ScoreRanker:
    settings = job.system.baseline_settings(job.point, job.seed, job.size)
    language = job.shared / LANGUAGE_FILE  # embedded by the first baseline that needs it
    trained = train_baseline(
        job.data,
        run,
        settings,
        language=language if language.exists() else None,
        resume=True,
        console=console,
    )
    if not language.exists() and (run / LANGUAGE_FILE).exists():
        with atomic_write(language) as draft:
            shutil.copy(run / LANGUAGE_FILE, draft)
    cost = trained.cost | {
        "state_bytes": 8 * trained.cost["parameters"]
    }  # the two moments of AdamW in float32
    return ScoreRanker(trained.baseline.scores, cost)


def _recipe(job: Job, dataset: DataSet, run: Path, console: Console) -> EngineRanker:
    config = job.system.recipe_settings(job.point, job.seed, job.size)
    prepared = job.shared / "prepared" / shape_key(config, fingerprint(dataset))
    trained = fit(job.data, run, config, resume=True, console=console, preparations=prepared)
    assert trained is not None  # a job publishes no bundle
    weights = sum(p.numel() for p in trained.prepared.model.parameters() if p.requires_grad)
    return EngineRanker(
        trained.engine,
        trained.prepared.encoder(config),
        config.sequence.trained_tasks,
        job.protocol.beam_width,
        {
            "parameters": weights,
            "seconds": trained.record["seconds"],
            "cpu_seconds": trained.record["cpu_seconds"],
            "state_bytes": RunLog.read(run).cost()["state_bytes"],
        },
    )


def _show(bar: Progress, row: Any, done: int, total: int) -> None:
    bar.update(row, completed=done)
